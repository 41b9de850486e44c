"""What is measured of a language model: reading a prompt, writing after it, a training step and its memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.layer.clock import Timing, interleave, peak_bytes
from benchmarks.layer.measure import DisagreementError, Row, Section, relative_error, row, verdicts
from benchmarks.models.candidates import Candidate, build, write_checkpoint
from benchmarks.models.shapes import BEST, JOBS, SHARED, Job, Model

TITLES: dict[Job, str] = {
    "prefill": "a prompt of {prefill} tokens to its first new one",
    "decode 1": "{decode} tokens after {prompt}, batch 1, per step",
    "decode 8": "{decode} tokens after {prompt}, batch 8, per step",
    "train": "training step of {rows} x {length} tokens (forward, loss, backward)",
    "memory": "peak memory of the training step beyond the weights",
}
TOLERANCE = 1e-4  # float32 through all layers, the worst position
MOST_COPIED = 64  # MiB
Samples = dict[str, Timing]


def measure(model: Model, rounds: int, jobs: Sequence[Job] = JOBS, without: Sequence[str] = ()) -> Iterator[Section]:
    """All jobs of a model, one after the other, less transformers' implementations `without`; logits and written tokens
    are compared first."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(model, Path(folder))
        candidates = build(Path(folder))
    errors = agreement(model, candidates)
    left = [c for c in candidates if c.name.removeprefix("transformers ") not in without]
    yield from (_section(job, model, left, rounds, errors) for job in jobs)


def _ids(model: Model, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, model.fields["vocab_size"], (rows, length), generator=generator)


@torch.inference_mode()
def agreement(model: Model, candidates: Sequence[Candidate]) -> dict[str, float]:
    """Relative errors of the logits against transformers' eager experts; raises DisagreementError above 1e-4, and where
    the likeliest tokens differ."""
    ids = _ids(model, 2, model.prompt)
    expected, written = candidates[0].logits(ids), candidates[0].generate(ids, model.decode)
    errors = {}
    for candidate in candidates[1:]:
        errors[candidate.name] = relative_error(candidate.logits(ids).flatten(0, 1), expected.flatten(0, 1))
        if not torch.equal(candidate.generate(ids, model.decode), written):
            raise DisagreementError(f"{candidate.name} writes other tokens than {candidates[0].name}")
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    if wrong:
        raise DisagreementError(f"logits differ by more than {TOLERANCE:g}: {wrong}")
    return errors


def _section(job: Job, model: Model, candidates: Sequence[Candidate], rounds: int, errors: dict[str, float]) -> Section:
    skipped = {c.name: reason for c in candidates if (reason := _refuses(c, job, model))}
    candidates = [c for c in candidates if c.name not in skipped]
    rows = _rows(job, MEASURES[job](model, candidates, rounds), candidates)
    ours = [c.name for c in candidates if c.family == "moezoo"]
    title = TITLES[job].format(
        **{name: getattr(model, name) for name in ("prefill", "decode", "prompt", "rows", "length")}
    )
    return Section(
        title=f"{model.name}: {title}", mode=job, unit="MiB" if job == "memory" else "ms", shapes=(), rows=rows,
        verdicts=verdicts(rows, ours, [t for j, t in model.targets if j == job]), agreement=errors, skipped=skipped,
    )  # fmt: skip


def _refuses(candidate: Candidate, job: Job, model: Model) -> str:
    """Why a candidate is left out: batched_mm copies the weights of every token's experts."""
    tokens = {"prefill": model.prefill, "decode 1": 1, "decode 8": 8}.get(job, model.rows * model.length)
    copied = tokens * model.chosen_bytes / 2**20
    if "batched_mm" in candidate.name and copied > MOST_COPIED:
        return f"it would copy {copied:.0f} MiB of weights in every layer"
    return ""


def _rows(job: Job, samples: Samples, candidates: Sequence[Candidate]) -> tuple[Row, ...]:
    best = min(samples[c.name].ms for c in candidates if c.family == "transformers")
    base = SHARED if job == "memory" else BEST
    return tuple(row(c.name, c.family, samples[c.name], {base: samples[c.name].ms / best}) for c in candidates)


def _writing(rows: int) -> Callable[[Model, Sequence[Candidate], int], Samples]:
    """Milliseconds per step, the prompt's included."""

    def run(model: Model, candidates: Sequence[Candidate], rounds: int) -> Samples:
        ids = _ids(model, rows, model.prompt)
        calls = {c.name: lambda c=c: c.generate(ids, model.decode) for c in candidates}  # type: ignore[misc]
        n = model.decode
        times = interleave(calls, rounds, "cpu", min_ms=0)
        return {name: Timing(t.ms / n, t.low / n, t.high / n, t.rounds) for name, t in times.items()}

    return run


def _prefill(model: Model, candidates: Sequence[Candidate], rounds: int) -> Samples:
    ids = _ids(model, 1, model.prefill)
    calls = {c.name: lambda c=c: c.generate(ids, 1) for c in candidates}  # type: ignore[misc]
    return interleave(calls, rounds, "cpu", min_ms=0)


def _train(model: Model, candidates: Sequence[Candidate], rounds: int) -> Samples:
    ids = _ids(model, model.rows, model.length)

    def drop() -> None:
        for candidate in candidates:
            candidate.module.zero_grad(set_to_none=True)

    calls = {c.name: lambda c=c: torch.autograd.backward(c.loss(ids)) for c in _training(candidates)}  # type: ignore[misc]
    return interleave(calls, rounds, "cpu", drop, min_ms=0)


def _memory(model: Model, candidates: Sequence[Candidate], rounds: int) -> Samples:
    ids, found = _ids(model, model.rows, model.length), {}
    for candidate in _training(candidates):
        mib = peak_bytes(lambda c=candidate: torch.autograd.backward(c.loss(ids)), "cpu") / 2**20  # type: ignore[misc]
        candidate.module.zero_grad(set_to_none=True)
        found[candidate.name] = Timing(mib, mib, mib, 1)
    return found


def _training(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """In training mode; no candidate has dropout."""
    for candidate in candidates:
        candidate.module.train()
    return candidates


MEASURES: dict[Job, Callable[[Model, Sequence[Candidate], int], Samples]] = {
    "prefill": _prefill, "decode 1": _writing(1), "decode 8": _writing(8), "train": _train, "memory": _memory,
}  # fmt: skip
