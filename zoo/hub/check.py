"""Whether all of a folder of weights fits and is finite, before any of it is loaded."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from modalities.text import generation_config
from modalities.text.chat import ChatTemplate
from modalities.text.tokenizer_files import CHATS, GENERATION, SERIALISED, SETTINGS, TokenizerFiles, read_json
from zoo.hub import config, skeleton, tensors
from zoo.hub.conversion import checkpoint, quantised
from zoo.hub.conversion.harmless import BOOKKEEPING
from zoo.hub.parity import PeerError, compare
from zoo.hub.report import Report
from zoo.hub.tensors import Stored
from zoo.hub.weights import fitted, locate
from zoo.models.unified import ModelSpec
from zoo.spec import Plain, parse

BAR = 1 << 28  # bytes of weights from which on a progress bar is worth it


def check(
    ref: str | os.PathLike[str], *, parity: bool = False, progress: bool = False, ignore_remote_code: bool = False
) -> Report:
    """Looks at everything zoo.load would use. Configuration and headers are compared first; then the numbers are read
    once, one tensor after the other, to find those that are not finite. Nothing is held but for `parity`, which runs
    the model, and after it that of transformers, in float32.

    progress shows a bar on standard error where there is much to read; ignore_remote_code is that of zoo.load. What is
    wrong with the checkpoint is in the report; raises only where there is no such folder or entry, as zoo.load does.
    """
    folder = locate(ref)
    report = Report(ref=os.fspath(ref), folder=str(folder))
    try:
        content = config.content(folder / "config.json", ignore_remote_code=ignore_remote_code)
        foreign = config.is_foreign(content)
        stored = (_foreign if foreign else _own)(folder, content, report)
    except (ValueError, OSError) as error:
        report.problems.append(str(error))
        return report
    _look_beside(folder, report)
    _look_for_nan(stored, report, progress)
    if parity and report.ok:
        _compare(folder, foreign, report, ignore_remote_code)
    return report


def _foreign(folder: Path, content: Plain, report: Report) -> Mapping[str, Stored]:
    """A public checkpoint: its tensors that are to be read. What is known is noted before the next step can fail."""
    family, spec = checkpoint.describe(content, folder / "config.json")
    report.family, report.architecture = family.name, family.architecture
    report.parameters, report.active = spec.cost().total, spec.cost().active
    _, left = family.read(content, str(folder / "config.json"))
    report.harmless = tuple(sorted(left.keys() - BOOKKEEPING))
    everything = _note_files(folder, report)
    found = checkpoint.plan(folder, content)
    report.layout = found.layout if len(family.layouts) > 1 else None
    report.theirs, report.unread = (quantised.consumed(found.read), len(everything)), found.ignored
    if quantised.consumed(found.read) > len(found.read):
        report.notes.append(f"weights are stored as {content[quantised.KEY]['quant_method']} and read as plain ones")
    report.ours = (len({piece.ours for piece in found.pieces}), len(found.model.state_dict()))
    report.problems += _unlike(found)
    return found.read


def _unlike(plan: checkpoint.Plan) -> list[str]:
    """Tensors that should repeat another one and do not."""
    first = {(piece.ours, piece.place): piece.theirs for piece in plan.pieces if not piece.again}
    problems = []
    for piece in plan.pieces:
        source = first.get((piece.ours, piece.place))
        if piece.again and source is not None and piece.theirs in plan.read:
            both = tensors.read({name: plan.read[name] for name in (source, piece.theirs)})
            if not torch.equal(both[source], both[piece.theirs]):
                problems.append(f"{piece.theirs} differs from {source}, which it repeats by config.json")
    return problems


def _own(folder: Path, content: Plain, report: Report) -> Mapping[str, Stored]:
    """A model that zoo.save wrote: its tensors."""
    content = config.read(folder / "config.json")
    report.family = config.FORMAT
    spec = parse(ModelSpec, content["spec"])
    report.parameters, report.active = spec.cost().total, spec.cost().active
    _note_files(folder, report)
    model, stored = fitted(folder, content)
    report.theirs, report.ours = (len(stored), len(stored)), (len(stored), len(model.state_dict()))
    return stored


def _note_files(folder: Path, report: Report) -> dict[str, Stored]:
    stored = tensors.contents(folder)
    report.files = {path.name: path.stat().st_size for path in sorted({s.file for s in stored.values()})}
    held = Counter(str(s.dtype).removeprefix("torch.") for s in stored.values())
    report.dtype = dict(held.most_common())
    return stored


def _look_beside(folder: Path, report: Report) -> None:
    """Tokenizer, chat template and generation settings; where one is there, it has to be readable."""

    def tokenizer() -> str | None:
        if not TokenizerFiles.found(folder):
            return None
        if not (folder / SERIALISED).is_file():
            return "in another form, read through transformers"
        return f"{SERIALISED}, {TokenizerFiles(folder).inner.get_vocab_size()} ids"

    def chat() -> str | None:
        if not (any((folder / name).is_file() for name in CHATS) or read_json(folder / SETTINGS).get("chat_template")):
            return None
        return ", ".join(ChatTemplate(folder).sources)

    def generation() -> str | None:
        return None if generation_config.read(folder) is None else GENERATION

    for label, read in (("tokenizer", tokenizer), ("chat template", chat), ("generation", generation)):
        try:
            report.beside[label] = read()
        except ValueError as error:
            report.beside[label] = "not readable"
            report.problems.append(str(error))


def _look_for_nan(stored: Mapping[str, Stored], report: Report, progress: bool) -> None:
    from tqdm import tqdm

    size = skeleton.size(torch.empty(s.shape, dtype=s.dtype, device="meta") for s in stored.values())
    hidden = not progress or size < BAR
    with tqdm(total=size, unit="B", unit_scale=True, disable=hidden, file=sys.stderr, leave=False) as bar:
        report.nonfinite = tensors.nonfinite(stored, bar.update)
    if report.nonfinite:
        held = {name: math.prod(stored[name].shape) for name in report.nonfinite}
        listed = "\n  ".join(f"{name}: {n} of {held[name]}" for name, n in report.nonfinite.items())
        report.problems.append(f"NaN or infinite numbers in {len(report.nonfinite)} tensors:\n  {listed}")


def _compare(folder: Path, foreign: bool, report: Report, ignore_remote_code: bool) -> None:
    if not foreign:
        report.notes.append("no parity: transformers does not read our own format; `zoo convert DIR NEW --to hf` first")
        return
    try:
        report.parity = compare(folder, ignore_remote_code=ignore_remote_code)
    except ImportError:
        report.notes.append("no parity: transformers is not installed")
        return
    except PeerError as error:
        report.notes.append(f"no parity: {error}")
        return
    report.problems += report.parity.problems()
