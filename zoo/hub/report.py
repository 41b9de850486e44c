"""The report of `zoo load-check`: what a folder of weights is, as fields, as JSON and as lines to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from zoo.hub.card import count
from zoo.hub.parity import Parity
from zoo.spec import Plain

SHOWN = 20  # lines of a list that are printed; JSON has all
NAMED = 8  # names in a line


@dataclass
class Report:
    """What was found; `problems` is empty where the model can be loaded and all its numbers are finite.

    family, architecture   what config.json says; "moezoo" for our own format
    layout                 how experts are stored, where the family knows several ways
    dtype                  precision -> tensors that are stored in it
    parameters, active     held, and used for one token
    files                  name -> bytes
    theirs, ours           tensors (read, all) of the files, and (set, all) of the model
    unread                 tensors that are left out, as the family says
    harmless               fields of config.json without influence on outputs
    beside                 tokenizer, chat template and generation settings: what was found, None where nothing
    nonfinite              tensor -> how many of its numbers are NaN or infinite; None where that was not looked at
    parity                 the comparison with transformers; None where it was not made
    notes                  what else should be known
    """

    ref: str
    folder: str
    family: str | None = None
    architecture: str | None = None
    layout: str | None = None
    dtype: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    active: float = 0
    files: dict[str, int] = field(default_factory=dict)
    theirs: tuple[int, int] | None = None
    ours: tuple[int, int] | None = None
    unread: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    beside: dict[str, str | None] = field(default_factory=dict)
    nonfinite: dict[str, int] | None = None
    parity: Parity | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def plain(self) -> Plain:
        """As JSON has it."""
        return {"ok": self.ok, **asdict(self)}

    def rows(self) -> Iterator[tuple[str, str]]:
        """(label, text) of what is known."""
        if self.family:
            said = f"{self.family} ({self.architecture})" if self.architecture else f"our own format ({self.family})"
            yield "what", ", ".join(filter(None, [said, self.layout and f"{self.layout} experts", self._precision()]))
            yield "parameters", f"{count(self.parameters)} total, {count(self.active)} active per token"
        if self.files:
            yield "files", f"{len(self.files)}, {count(sum(self.files.values()))}B"
        if self.theirs and self.ours:
            yield "tensors", "{} of {} read; they set {} of {} of ours".format(*self.theirs, *self.ours)
        if self.unread:
            yield "left unread", _names(self.unread)
        if self.harmless:
            yield "without influence", _names(self.harmless)
        yield from ((label, found or "none") for label, found in self.beside.items())
        if self.nonfinite is not None:
            bad = f"not finite in {len(self.nonfinite)} tensors" if self.nonfinite else "all finite"
            yield "numbers", bad
        if self.parity is not None:
            yield "parity", self.parity.line()
        yield from (("note", note) for note in self.notes)

    def _precision(self) -> str:
        if len(self.dtype) == 1:
            return next(iter(self.dtype))
        return " and ".join(f"{name} ({tensors} tensors)" for name, tensors in self.dtype.items())

    def __str__(self) -> str:
        lines = [self.folder, *(f"  {label + ':':<19}{text}" for label, text in self.rows())]
        for problem in self.problems:
            first, *rest = problem.split("\n")
            lines += [f"  PROBLEM: {first}", *(f"    {line.strip()}" for line in rest[:SHOWN])]
            lines += [f"    ... and {len(rest) - SHOWN} more (--json lists all)"] * (len(rest) > SHOWN)
        return "\n".join([*lines, "ok" if self.ok else "NOT fit for use"])


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
