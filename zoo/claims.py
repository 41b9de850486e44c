"""Claims of entries, checked: what a check is, and the run over those of one entry.

A check is a registered part of kind "claim". Those that train lie above the zoo, which knows them by name only.
"""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from zoo import registry
from zoo.hub.claim import Claim, Found
from zoo.hub.entries import Entry
from zoo.spec import parse

Outcome = Literal["holds", "fails", "error", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What a check measured.

    figure    the figure that decides
    expected  what the claim needs of it, in words: "at least 0.3"
    holds     whether it does
    note      how it was measured, and the figures behind it
    """

    figure: float
    expected: str
    holds: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ClaimSpec:
    """The description of a check; `type` names it."""

    kind: ClassVar[str] = "claim"

    def check(self, entry: Entry, *, seed: int = 0, progress: bool = True) -> Finding:
        """Measures what the claim is about on the entry's system. The same seed finds the same figure on one machine,
        unless it is a time. `progress` shows a bar on stderr while models train."""
        raise NotImplementedError


@dataclass(frozen=True)
class Result:
    """One claim after its check. `skipped` says in `reason` why nothing ran; `error` holds the traceback there."""

    claim: Claim
    outcome: Outcome
    finding: Finding | None = None
    reason: str = ""

    def lines(self) -> list[str]:
        """The claim, and below it figure against expectation."""
        word = {"holds": "holds", "fails": "DOES NOT HOLD", "error": "ERROR", "skipped": "skipped"}[self.outcome]
        lines = [f"{self.claim.name}: {word}", f"  says:     {self.claim.says}"]
        if self.finding is not None:
            lines += [f"  figure:   {self.finding.figure:.6g}", f"  expected: {self.finding.expected}"]
            lines += [f"  note:     {self.finding.note}"] * bool(self.finding.note)
        return lines + [f"  {line}" for line in self.reason.splitlines()]

    def plain(self) -> dict[str, object]:
        """For JSON."""
        found = self.finding
        figures = {} if found is None else {"figure": found.figure, "expected": found.expected, "note": found.note}
        return {"claim": self.claim.name, "says": self.claim.says, "outcome": self.outcome, **figures} | (
            {"reason": self.reason} if self.reason else {}
        )


def spec_of(claim: Claim) -> ClaimSpec:
    """The check of a claim, which must have one. Raises SpecError or RegistryError with the near miss."""
    assert claim.check is not None
    keys = dict(claim.check)
    found: type[ClaimSpec] = registry.get("claim", keys.pop("type"))
    return parse(found, keys, f"claims.{claim.name}.check")


def run(
    entry: Entry, *, only: str | None = None, slow: bool = False, seed: int = 0, progress: bool = True
) -> Iterator[Result]:
    """Checks an entry's claims, all but the slow ones unless `slow` or named by `only`; a result each, as it is there.

    All checks are parsed before the first one runs. Raises LookupError where no claim has that name.
    """
    claims = entry.content.claims
    if only is not None:
        names = [claim.name for claim in claims]
        if only not in names:
            there = ", ".join(names) or "none"
            raise LookupError(f"{entry.name}: no claim {only!r}{registry.nearest(only, names)}; there are {there}")
        claims = tuple(claim for claim in claims if claim.name == only)
    checks = {claim.name: spec_of(claim) for claim in claims if claim.check is not None}
    for claim in claims:
        if claim.name not in checks:
            yield Result(claim, "skipped", reason="no check: the claim is stated only")
        elif claim.slow and not slow and only is None:
            yield Result(claim, "skipped", reason="slow: give --slow, or name it with --claim")
        else:
            yield _checked(claim, checks[claim.name], entry, seed, progress)


def _checked(claim: Claim, check: ClaimSpec, entry: Entry, seed: int, progress: bool) -> Result:
    try:
        finding = check.check(entry, seed=seed, progress=progress)
    except Exception:  # a crash in one check is its result, the others still run
        return Result(claim, "error", reason=traceback.format_exc())
    return Result(claim, "holds" if finding.holds else "fails", finding)


def found(entry: Entry, result: Result, seed: int = 0) -> Found:
    """A result as an entry's file keeps it, with the command that finds it again and the commit it was found at."""
    assert result.finding is not None
    finding = result.finding
    command = f"zoo claims {entry.name} --claim {result.claim.name}" + (f" --seed {seed}" if seed else "")
    return Found(
        figure=float(f"{finding.figure:.5g}"),
        expected=finding.expected,
        holds=finding.holds,
        note=finding.note,
        command=command,
        commit=commit(),
    )


def commit() -> str:
    """The short name of the checkout's commit, with "+" where tracked files differ from it; "" outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=20, check=True).stdout
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.strip() + ("+" if changed.strip() else "")
