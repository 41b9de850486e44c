"""What single tokens do: hard ones use more experts, groups are used equally."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.claims.base import TrainedClaim
from zoo.claims import Finding
from zoo.hub.entries import Entry


@dataclass(frozen=True, kw_only=True)
class HardTokensSpec(TrainedClaim):
    """Tokens whose next byte is hard to tell use more routed experts: Spearman's rank correlation between the routed
    experts of a token, summed over layers, and the loss of the byte that follows it.

    at_least  least correlation
    """

    at_least: float = 0.02

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        from scipy.stats import spearmanr

        measured = self.outcome(self.described(entry), seed, progress).measured
        if not measured.used.size:
            raise ValueError("a model without MoE layers uses no experts")
        count = measured.used.sum(axis=0)
        if count.min() == count.max():
            return Finding(0.0, self._expected(), False, f"every token uses {int(count[0])} routed experts")
        found = float(spearmanr(count, measured.token).statistic)
        cut = np.quantile(measured.token, [0.25, 0.75])
        easy, hard = count[measured.token <= cut[0]].mean(), count[measured.token >= cut[1]].mean()
        layers = len(measured.used)
        note = f"routed experts per token and layer: easiest quarter {easy / layers:.3f}, hardest {hard / layers:.3f}"
        return Finding(found, self._expected(), found >= self.at_least, f"{note}; {len(count)} tokens")

    def _expected(self) -> str:
        return f"rank correlation at least {self.at_least:g}"


@dataclass(frozen=True, kw_only=True)
class GroupsEqualSpec(TrainedClaim):
    """Every token uses equally many routed experts of each group of consecutive ones.

    groups  number of groups
    off_by  by how many experts a group may be off, for any token in any layer
    """

    groups: int
    off_by: int = 0

    def __post_init__(self) -> None:
        if self.groups < 2:
            raise ValueError(f"groups: got {self.groups}, expected 2 or more")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        measured = self.outcome(self.described(entry), seed, progress).measured
        if not measured.chosen.size:
            raise ValueError("groups_equal: needs MoE layers with equally many slots in all of them")
        routed = measured.layers[0].routed
        if routed % self.groups:
            raise ValueError(f"groups: got {self.groups}, expected a divisor of the {routed} routed experts")
        group = measured.chosen // (routed // self.groups)  # null experts and empty slots lie behind the last group
        counts = np.stack([(group == g).sum(axis=2) for g in range(self.groups)])
        worst = int((counts.max(axis=0) - counts.min(axis=0)).max())
        expected = f"counts of the groups differ by at most {self.off_by}, for every token"
        loads = counts.sum(axis=2)
        ratio = float((loads.max(axis=0) / np.maximum(loads.mean(axis=0), 1e-9)).max())
        return Finding(worst, expected, worst <= self.off_by, f"greatest over mean load of the groups {ratio:.4f}")
