"""A figure that follows a key of the description."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from training.claims import lab
from training.claims.base import TrainedClaim
from training.claims.figures import MEANING, Figure, figure
from zoo.claims import Finding
from zoo.hub.entries import Entry


@dataclass(frozen=True, kw_only=True)
class ExchangeSpec(TrainedClaim):
    """A figure under descriptions that differ in something.

    figure   which
    by       by at least how much it is to differ; 0 for any amount
    reading  whether the exchange is made after the training only, for reading held-out text with the trained weights
    """

    figure: Figure
    by: float = 0.0
    reading: bool = False

    def __post_init__(self) -> None:
        if self.by < 0:
            raise ValueError(f"by: got {self.by}, expected 0 or more; the direction is another key's")

    def value(self, entry: Entry, overrides: Mapping[str, Any], seed: int, progress: bool) -> float:
        """The figure with these values exchanged."""
        plain = self.described(entry, overrides)
        trained = self.outcome(self.described(entry) if self.reading else plain, seed, progress)
        return figure(lab.reread(trained, plain, self.train) if self.reading else trained, self.figure)

    def amount(self) -> str:
        """`by` in words."""
        return f"at least {self.by:g}" if self.by else "any amount"

    def enough(self, gap: float) -> bool:
        """Whether a difference in the expected direction is large enough."""
        return gap >= self.by if self.by else gap > 0


@dataclass(frozen=True, kw_only=True)
class MonotoneSpec(ExchangeSpec):
    """A figure that rises, or falls, from each value of a key to the next.

    key     dotted path into the entry's description
    values  what the key is set to, in order
    trend   rises or falls
    """

    key: str
    values: tuple[Any, ...]
    trend: Literal["rises", "falls"] = "rises"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.values) < 2:
            raise ValueError(f"values: got {len(self.values)}, expected at least two")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        found = [self.value(entry, {self.key: value}, seed, progress) for value in self.values]
        sign = 1 if self.trend == "rises" else -1
        least = min(sign * (b - a) for a, b in itertools.pairwise(found))
        key = self.key.rpartition(".")[2]
        note = "; ".join(f"{key} {value}: {got:.4g}" for value, got in zip(self.values, found, strict=True))
        expected = f"{self.figure} {self.trend} by {self.amount()} from each value of {key} to the next"
        return Finding(least, expected, self.enough(least), f"{note} ({MEANING[self.figure]})")


@dataclass(frozen=True, kw_only=True)
class AblationSpec(ExchangeSpec):
    """A figure of the system beside that of the same system with something exchanged.

    overrides  what is exchanged for the comparison, by dotted path
    expect     whether the system's own figure is to be less or more
    """

    overrides: dict[str, Any]
    expect: Literal["less", "more"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.overrides:
            raise ValueError("overrides: got none, expected what is exchanged for the comparison")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own, other = (self.value(entry, exchanged, seed, progress) for exchanged in ({}, self.overrides))
        gap = own - other if self.expect == "more" else other - own
        expected = f"{self.figure} {self.expect} than with the exchange, by {self.amount()}"
        said = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in self.overrides.items())
        note = f"{own:.4g}, with {said}: {other:.4g} ({MEANING[self.figure]})"
        return Finding(gap, expected, self.enough(gap), note)


@dataclass(frozen=True, kw_only=True)
class SteadierSpec(ExchangeSpec):
    """A figure that varies less from seed to seed than that of the same system with something exchanged.

    overrides  what is exchanged for the comparison, by dotted path
    seeds      trainings of each, at the claim's seed and the ones after it
    """

    overrides: dict[str, Any]
    seeds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, expected 2 or more")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own, other = (
            [self.value(entry, exchanged, seed + i, progress) for i in range(self.seeds)]
            for exchanged in ({}, self.overrides)
        )
        gap = statistics.stdev(other) - statistics.stdev(own)
        expected = f"{self.figure} varies less over {self.seeds} seeds than with the exchange, by {self.amount()}"
        values = [", ".join(f"{value:.4g}" for value in found) for found in (own, other)]
        note = (
            f"deviation {statistics.stdev(own):.4g} ({values[0]}), with it {statistics.stdev(other):.4g} ({values[1]})"
        )
        return Finding(gap, expected, self.enough(gap), f"{note} ({MEANING[self.figure]})")


@dataclass(frozen=True, kw_only=True)
class MilderSpec(ExchangeSpec):
    """An exchange raises a figure less than it does where something else is exchanged first.

    overrides  the exchange, by dotted path
    beside     what is exchanged first for the comparison, by dotted path
    """

    overrides: dict[str, Any]
    beside: dict[str, Any]

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own, other = (
            replace(self, change={**self.change, **first}).rise(entry, seed, progress) for first in ({}, self.beside)
        )
        expected = f"the exchange raises {self.figure} less than where something else is exchanged first"
        said = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in self.beside.items())
        note = f"{own:+.4g}, with {said}: {other:+.4g} ({MEANING[self.figure]})"
        return Finding(other - own, f"{expected}, by {self.amount()}", self.enough(other - own), note)

    def rise(self, entry: Entry, seed: int, progress: bool) -> float:
        """The figure with the exchange minus that without."""
        return self.value(entry, self.overrides, seed, progress) - self.value(entry, {}, seed, progress)
