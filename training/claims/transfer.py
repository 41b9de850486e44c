"""A learning rate that is tuned on a narrow model and taken over by a wide one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from training.claims import lab
from training.claims.base import TrainedClaim
from zoo.claims import Finding
from zoo.hub.entries import Entry


@dataclass(frozen=True, kw_only=True)
class RateTransferSpec(TrainedClaim):
    """The best learning rate of a narrow model is the best of a wide one whose matrices train at the rate over s, the
    ratio of the widths: what the narrow one's best rate costs the wide one beside the wide one's own best.

    narrow    what is exchanged for the narrow model, by dotted path, backbone.dim among it
    rates     learning rates that are tried
    init_std  standard deviation that both models' weights are drawn with at the narrow width
    at_most   nats per byte
    """

    narrow: dict[str, Any]
    rates: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2, 6.4e-2)
    init_std: float = 0.1
    at_most: float = 0.02

    def __post_init__(self) -> None:
        if "backbone.dim" not in self.narrow:
            raise ValueError("narrow: leaves the width as it is; expected backbone.dim among the keys")
        if len(self.rates) < 2:
            raise ValueError(f"rates: got {len(self.rates)}, expected two or more")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        tuned = int(self.narrow["backbone.dim"])
        small = self._losses(self.described(entry, self.narrow), tuned, seed, progress)
        wide = self._losses(self.described(entry), tuned, seed, progress)
        same = self._losses(self.described(entry), None, seed, progress)
        best = min(small, key=lambda rate: small[rate])
        cost = wide[best] - min(wide.values())
        lines = {"narrow": small, "wide": wide, "wide at one rate for all": same}
        note = "; ".join(
            f"{name}: " + ", ".join(f"{rate:g} {loss:.4f}" for rate, loss in losses.items())
            for name, losses in lines.items()
        )
        return Finding(cost, f"at most {self.at_most:g} nats per byte", cost <= self.at_most, note)

    def _losses(self, plain: dict[str, Any], tuned: int | None, seed: int, progress: bool) -> dict[float, float]:
        """The held-out loss at each rate; infinite where training diverged."""
        from training.stepping import DivergedError

        found = {}
        for rate in self.rates:
            settings = {"tuned_width": tuned, "init_std": self.init_std}
            with lab.bar(self.train.steps, progress, f"lr {rate:g}") as tick:
                try:
                    outcome = lab.run(plain, replace(self.train, lr=rate), seed=seed, tick=tick, settings=settings)
                except DivergedError:
                    found[rate] = math.inf
                    continue
            found[rate] = outcome.measured.loss
        return found
