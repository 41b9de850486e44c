"""A figure that lies where it should."""

from __future__ import annotations

from dataclasses import dataclass

from training.claims.base import TrainedClaim
from training.claims.figures import MEANING, Figure, figure
from zoo.claims import Finding
from zoo.hub.entries import Entry


@dataclass(frozen=True, kw_only=True)
class BandSpec(TrainedClaim):
    """A figure between two bounds, both included.

    figure  which
    low     least value, null for none
    high    greatest value, null for none
    """

    figure: Figure
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("low: got neither low nor high, expected at least one bound")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low: got {self.low}, expected at most high = {self.high}")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        value = figure(self.outcome(self.described(entry), seed, progress), self.figure)
        above, below = self.low is None or value >= self.low, self.high is None or value <= self.high
        return Finding(value, f"{self.figure} {self._bounds()}", above and below, MEANING[self.figure])

    def _bounds(self) -> str:
        if self.low is None or self.high is None:
            return f"at least {self.low:g}" if self.high is None else f"at most {self.high:g}"
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True, kw_only=True)
class LoadBalancedSpec(TrainedClaim):
    """Every layer's routed experts are used about equally, and none is dead.

    at_most  greatest over mean load that the worst layer may have
    dead     routed experts, over all layers, that may get less than 1 % of the even share
    """

    at_most: float = 2.0
    dead: int = 0

    def __post_init__(self) -> None:
        if self.at_most < 1:
            raise ValueError(f"at_most: got {self.at_most}, expected 1 (even) or more")
        if self.dead < 0:
            raise ValueError(f"dead: got {self.dead}, expected 0 or more")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        outcome = self.outcome(self.described(entry), seed, progress)
        ratio, dead = figure(outcome, "load_ratio"), figure(outcome, "dead")
        expected = f"greatest over mean load at most {self.at_most:g} in the worst layer, at most {self.dead} dead"
        return Finding(ratio, expected, ratio <= self.at_most and dead <= self.dead, f"{dead:.0f} dead experts")
