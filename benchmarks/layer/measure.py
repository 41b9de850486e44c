"""The measurements of one shape: agreement first, then forward, forward + backward, its peak memory, decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.layer.candidates import DENSE, Candidate, build, first_line
from benchmarks.layer.clock import Call, Floors, Timing, interleave, measure_floors, peak_bytes
from benchmarks.layer.shapes import Mode, Shape, Target

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# In bfloat16 transformers routes on rounded logits; the few tokens that differ are in every weight gradient.
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}
DECODE_INPUTS = 32  # one sample of decoding is a pass over so many inputs: all the same, or all different
MODE_TITLES = {
    "forward": "forward", "train": "forward + backward", "memory": "peak memory of forward + backward",
    "same experts": "decoding, the same experts each call", "random experts": "decoding, random experts",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how often."""

    device: str
    dtype: torch.dtype
    rounds: int
    copy_rate: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: a median with its quartiles, and its ratio to each base."""

    name: str
    family: str
    value: float
    low: float
    high: float
    rounds: int
    ratios: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target beside what was measured."""

    name: str
    base: str
    limit: float
    ratio: float
    met: bool


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table. agreement: candidate -> relative error of its output (and gradients) against transformers'."""

    title: str
    mode: str
    unit: str
    shapes: tuple[Shape, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    floors: Floors | None = None


class DisagreementError(RuntimeError):
    """Two candidates with the same weights give different results: no time means anything."""


def drop_gradients(candidates: Sequence[Candidate], x: Tensor) -> Call:
    """What runs, untimed, after every sample."""

    def drop() -> None:
        x.grad = None
        for candidate in candidates:
            candidate.module.zero_grad(set_to_none=True)

    return drop


def training_step(candidate: Candidate, x: Tensor, grad: Tensor) -> Call:
    """Forward and backward, the input's gradient included, as for a layer in the middle of a model."""
    return lambda: torch.autograd.backward(candidate.call(x), grad)


def inference(call: Call) -> Call:
    """The call without autograd."""

    def run() -> None:
        with torch.inference_mode():
            call()

    return run


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Of the worst row in float32; of the median row below, where routers that round differ at near ties."""
    rows = (got - expected).float().norm(dim=-1) / expected.float().norm(dim=-1).clamp(min=1e-12)
    return float(rows.max() if got.dtype == torch.float32 else rows.median())


def agreement(candidates: Sequence[Candidate], x: Tensor, skipped: dict[str, str]) -> dict[str, float]:
    """Outputs against transformers' eager experts; a backend of ours that cannot run here is put into `skipped`."""
    errors: dict[str, float] = {}
    with torch.inference_mode():
        expected = next(c for c in candidates if c.name == "transformers eager").call(x)
        for candidate in candidates:
            if candidate.family == "dense" or candidate.name in skipped:
                continue
            try:
                errors[candidate.name] = relative_error(candidate.call(x), expected)
            except (NotImplementedError, RuntimeError) as error:
                skipped[candidate.name] = first_line(error)
    return _within(errors, TOLERANCE[x.dtype], "outputs")


def gradient_agreement(candidates: Sequence[Candidate], x: Tensor) -> dict[str, float]:
    """Gradients of the input and of both expert weights against transformers' grouped_mm, the worst of the three."""
    x, grad = x.clone().requires_grad_(), torch.randn_like(x)
    found: dict[str, list[Tensor]] = {}
    for candidate in (c for c in candidates if c.family != "dense"):
        training_step(candidate, x, grad)()
        weights = [p.grad for name, p in candidate.module.named_parameters() if name.startswith("experts")]
        found[candidate.name] = [g.flatten()[None] for g in (x.grad, *weights) if g is not None]
        drop_gradients([candidate], x)()
    expected = found["transformers grouped_mm"]
    errors = {n: max(map(relative_error, got, expected)) for n, got in found.items()}
    return _within(errors, GRADIENT_TOLERANCE[x.dtype], "gradients")


def _within(errors: dict[str, float], tolerance: float, what: str) -> dict[str, float]:
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if wrong:
        raise DisagreementError(f"{what} differ by more than {tolerance:g}: {wrong}")
    return errors


def measure(shape: Shape, setting: Setting) -> list[Section]:
    """All modes of a shape."""
    candidates, unbuilt = build(shape, setting.device, setting.dtype)
    floors = measure_floors(shape, setting.device, setting.dtype, setting.copy_rate, setting.rounds)
    x = torch.randn(1, shape.tokens, shape.dim, device=setting.device, dtype=setting.dtype)
    sections = []
    for mode in shape.modes:
        skipped = unbuilt | {c.name: reason for c in candidates if (reason := c.refuses(shape, mode))}
        errors = agreement(candidates, x, skipped)
        able = [c for c in candidates if c.name not in skipped]
        if mode == "train":
            errors |= {f"{name}, gradients": e for name, e in gradient_agreement(able, x).items()}
        rows = with_ratios(MEASURES[mode](able, x, setting), able, mode)
        judged = [c.name for c in able if c.family == "moezoo" and not c.reference]
        sections.append(
            Section(
                title=f"{shape.title}, {MODE_TITLES[mode]}", mode=mode, unit="MiB" if mode == "memory" else "ms",
                shapes=(shape,), rows=rows, skipped=skipped, agreement=errors, floors=floors,
                verdicts=verdicts(rows, judged, [t for m, t in shape.targets if m == mode]),
            )
        )  # fmt: skip
    return sections


Samples = dict[str, Timing]


def _forward(candidates: Sequence[Candidate], x: Tensor, setting: Setting) -> Samples:
    calls = {c.name: inference(lambda c=c: c.call(x)) for c in candidates}  # type: ignore[misc]
    return interleave(calls, setting.rounds, setting.device)


def _train(candidates: Sequence[Candidate], x: Tensor, setting: Setting) -> Samples:
    x, grad = x.clone().requires_grad_(), torch.randn_like(x)
    calls = {c.name: training_step(c, x, grad) for c in candidates}
    # One call a sample: a second would add to gradients that the first allocated.
    return interleave(calls, setting.rounds, setting.device, drop_gradients(candidates, x), min_ms=0)


def _memory(candidates: Sequence[Candidate], x: Tensor, setting: Setting) -> Samples:
    x, grad = x.clone().requires_grad_(), torch.randn_like(x)
    found = {}
    for candidate in candidates:
        drop = drop_gradients([candidate], x)
        training_step(candidate, x, grad)()  # what is kept for good is made in a first call
        drop()
        mib = peak_bytes(training_step(candidate, x, grad), setting.device) / 2**20
        drop()
        found[candidate.name] = Timing(mib, mib, mib, 1)
    return found


def _decode(candidates: Sequence[Candidate], inputs: Sequence[Tensor], setting: Setting) -> Samples:
    def sweep(call: Callable[[Tensor], Tensor]) -> Call:
        def run() -> None:
            for x in inputs:
                call(x)

        return inference(run)

    times = interleave({c.name: sweep(c.call) for c in candidates}, setting.rounds, setting.device)
    n = len(inputs)
    return {name: Timing(t.ms / n, t.low / n, t.high / n, t.rounds) for name, t in times.items()}


def _same(candidates: Sequence[Candidate], x: Tensor, setting: Setting) -> Samples:
    return _decode(candidates, [x] * DECODE_INPUTS, setting)


def _random(candidates: Sequence[Candidate], x: Tensor, setting: Setting) -> Samples:
    return _decode(candidates, [torch.randn_like(x) for _ in range(DECODE_INPUTS)], setting)


MEASURES: dict[Mode, Callable[[Sequence[Candidate], Tensor, Setting], Samples]] = {
    "forward": _forward, "train": _train, "memory": _memory, "same experts": _same, "random experts": _random,
}  # fmt: skip


def weight_mib(candidate: Candidate) -> float:
    """What the gradients of all parameters take, whoever computes them."""
    return sum(p.numel() * p.element_size() for p in candidate.module.parameters()) / 2**20


def with_ratios(samples: Samples, candidates: Sequence[Candidate], mode: Mode) -> tuple[Row, ...]:
    """Ratios to the yardstick and to transformers' best; in memory to grouped_mm, with weight gradients and without."""
    value = {name: timing.ms for name, timing in samples.items()}
    rows = []
    for c in candidates:
        if mode == "memory":
            base = next(b for b in candidates if b.name == "transformers grouped_mm")
            ratios = {"grouped_mm": value[c.name] / value[base.name]}
            beyond = value[base.name] - weight_mib(base)
            ratios["grouped_mm, weight gradients left out"] = (value[c.name] - weight_mib(c)) / beyond
        else:
            best = min(value[b.name] for b in candidates if b.family == "transformers")
            ratios = {"dense": value[c.name] / value[DENSE], "transformers' best": value[c.name] / best}
        rows.append(row(c.name, c.family, samples[c.name], ratios))
    return tuple(rows)


def row(name: str, family: str, timing: Timing, ratios: dict[str, float]) -> Row:
    """A line of a table."""
    return Row(
        name=name, family=family, value=timing.ms, low=timing.low, high=timing.high, rounds=timing.rounds, ratios=ratios
    )


def verdicts(rows: Sequence[Row], judged: Sequence[str], targets: Sequence[Target]) -> tuple[Verdict, ...]:
    """Every target for every judged row."""
    found = {r.name: r.ratios for r in rows}
    return tuple(
        Verdict(name=name, base=t.base, limit=t.limit, ratio=found[name][t.base], met=found[name][t.base] <= t.limit)
        for t in targets
        for name in judged
    )
