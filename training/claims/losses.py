"""Held-out losses beside those of a baseline that read the same text in the same order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.claims.base import TrainedClaim, reference
from training.claims.counting import flops
from training.claims.lab import Outcome, unified
from training.claims.widths import solve
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.spec import Plain, override

TOLERANCE = 0.02  # of active operations that are made equal


@dataclass(frozen=True)
class Difference:
    """A loss minus the baseline's, in nats per byte; negative is better.

    mean       over seeds
    deviation  standard deviation over seeds, not a number for one seed
    error      standard error of the mean over held-out windows (paired), the seeds taken together
    """

    mean: float
    deviation: float
    error: float

    @property
    def band(self) -> float:
        """What counts as chance: the deviation over seeds or the standard error over windows, whichever is greater."""
        return max(self.error, 0.0 if math.isnan(self.deviation) else self.deviation)


def difference(own: Sequence[np.ndarray], other: Sequence[np.ndarray], counts: np.ndarray) -> Difference:
    """From losses [N] of equal windows, in nats, one array per seed; counts [N] bytes of each window."""
    gaps = np.stack([a - b for a, b in zip(own, other, strict=True)]) / counts.mean()
    per_seed, per_window = gaps.mean(axis=1), gaps.mean(axis=0)
    deviation = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else math.nan
    error = float(per_window.std(ddof=1) / math.sqrt(len(per_window))) if len(per_window) > 1 else math.nan
    return Difference(float(per_seed.mean()), deviation, error)


@dataclass(frozen=True, kw_only=True)
class LossNotWorseSpec(TrainedClaim):
    """Held-out loss no worse than a baseline's, chance allowed for.

    baseline    an entry, a file or a description; null for the entry's own
    overrides   values of the baseline's description to exchange, by dotted path
    solve       keys of the entry's description that are solved for, so that its active operations meet the baseline's
                within 2 %, such as [experts.hidden]; none by default
    deviations  how many deviations count as chance; one is the greater of the deviation over seeds and the standard
                error over held-out windows
    margin      nats per byte that may be lost on top
    seeds       seeds, from the given one on
    """

    baseline: str | dict[str, Any] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    solve: tuple[str, ...] = ()
    deviations: float = 2.0
    margin: float = 0.0
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.baseline is None and not self.overrides:
            raise ValueError("baseline: got neither a baseline nor overrides, so there is nothing to compare with")
        if self.seeds < 1:
            raise ValueError(f"seeds: got {self.seeds}, expected 1 or more")
        if self.deviations < 0:
            raise ValueError(f"deviations: got {self.deviations}, expected 0 or more")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        found, note = self.found(entry, seed, progress)
        bound = self.margin + self.deviations * found.band
        return Finding(found.mean, f"loss minus the baseline's at most {bound:+.4f}", found.mean <= bound, note)

    def found(self, entry: Entry, seed: int, progress: bool) -> tuple[Difference, str]:
        """The difference, and a note with the figures behind it."""
        own, other = self.pair(entry)
        seeds = range(seed, seed + self.seeds)
        pairs = [(self.outcome(own, s, progress), self.outcome(other, s, progress)) for s in seeds]
        counts = pairs[0][0].measured.counts
        if any(not np.array_equal(o.measured.counts, counts) for pair in pairs for o in pair):
            raise ValueError("baseline: reads text in other windows; it needs the same text modality")
        found = difference([a.measured.losses for a, _ in pairs], [b.measured.losses for _, b in pairs], counts)
        return found, self._note([a for a, _ in pairs], [b for _, b in pairs], found)

    def pair(self, entry: Entry) -> tuple[Plain, Plain]:
        """The descriptions of the entry, its widths solved for, and of the baseline."""
        own = self.described(entry)
        other = override(own if self.baseline is None else reference(entry, self.baseline), self.overrides)
        if self.solve:
            target = flops(unified(other, "baseline"))
            own = solve(own, self.solve, target, tolerance=TOLERANCE).plain
        return own, other

    def _note(self, own: Sequence[Outcome], other: Sequence[Outcome], found: Difference) -> str:
        def said(outcomes: Sequence[Outcome]) -> str:
            loss = sum(o.measured.loss for o in outcomes) / len(outcomes)
            return f"{loss:.4f} nats per byte at {outcomes[0].active_flops / 1e6:.3f} MFLOPs per token"

        spread = "" if math.isnan(found.deviation) else f", deviation over seeds {found.deviation:.4f}"
        return (
            f"{said(own)}; baseline {said(other)}; {self.seeds} seed(s){spread}, "
            f"standard error over windows {found.error:.4f}"
        )


@dataclass(frozen=True, kw_only=True)
class LossBetterSpec(LossNotWorseSpec):
    """Held-out loss better than a baseline's, by more than chance and by at least `margin`.

    margin  nats per byte that must be gained on top of chance
    """

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        found, note = self.found(entry, seed, progress)
        bound = -self.margin - self.deviations * found.band
        return Finding(found.mean, f"loss minus the baseline's below {bound:+.4f}", found.mean < bound, note)
