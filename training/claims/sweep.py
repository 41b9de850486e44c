"""A figure that follows a key of the description."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

from training.claims.base import TrainedClaim
from training.claims.figures import MEANING, Figure, figure
from zoo.claims import Finding
from zoo.hub.entries import Entry


@dataclass(frozen=True, kw_only=True)
class MonotoneSpec(TrainedClaim):
    """A figure that rises, or falls, from each value of a key to the next.

    figure  which
    key     dotted path into the entry's description
    values  what the key is set to, in order
    trend   rises or falls
    by      least change from one value to the next; 0 allows no change against the trend
    """

    figure: Figure
    key: str
    values: tuple[Any, ...]
    trend: Literal["rises", "falls"] = "rises"
    by: float = 0.0

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"values: got {len(self.values)}, expected at least two")
        if self.by < 0:
            raise ValueError(f"by: got {self.by}, expected 0 or more; the direction is said by trend")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        found = [
            figure(self.outcome(self.described(entry, {self.key: value}), seed, progress), self.figure)
            for value in self.values
        ]
        sign = 1 if self.trend == "rises" else -1
        least = min(sign * (b - a) for a, b in itertools.pairwise(found))
        holds = least >= self.by and (self.by > 0 or sign * (found[-1] - found[0]) > 0)
        key = self.key.rpartition(".")[2]
        note = "; ".join(f"{key} {value}: {got:.4g}" for value, got in zip(self.values, found, strict=True))
        expected = f"{self.figure} {self.trend} by at least {self.by:g} from each value of {key} to the next"
        return Finding(least, expected, holds, f"{note} ({MEANING[self.figure]})")


@dataclass(frozen=True, kw_only=True)
class AblationSpec(TrainedClaim):
    """A figure of the system beside that of the same system with something exchanged.

    figure     which
    overrides  what is exchanged for the comparison, by dotted path
    expect     whether the system's own figure is to be less or more
    by         by at least how much
    """

    figure: Figure
    overrides: dict[str, Any]
    expect: Literal["less", "more"]
    by: float = 0.0

    def __post_init__(self) -> None:
        if not self.overrides:
            raise ValueError("overrides: got none, expected what is exchanged for the comparison")
        if self.by < 0:
            raise ValueError(f"by: got {self.by}, expected 0 or more; the direction is said by expect")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own = figure(self.outcome(self.described(entry), seed, progress), self.figure)
        other = figure(self.outcome(self.described(entry, self.overrides), seed, progress), self.figure)
        gap = own - other if self.expect == "more" else other - own
        least = f"at least {self.by:g}" if self.by else "any amount"
        expected = f"{self.figure} {self.expect} than with the exchange, by {least}"
        note = f"{own:.4g}, with {self.overrides}: {other:.4g} ({MEANING[self.figure]})"
        return Finding(gap, expected, gap >= self.by if self.by else gap > 0, note)
