"""An alarm for routing that collapses."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import numpy as np

FIXES = (
    "raise the weight of the balance loss (or the rate of the selection bias), widen its scope to global, lower lr, "
    "or warm the router up first"
)


class CollapseWarning(UserWarning):
    """Routing uses too few experts."""


class CollapseAlarm(L.Callback):
    """Warns, naming layer, expert and share, when one expert takes nearly everything or experts die.

    An expert is looked at over the steps of a report. Each layer and finding warns once until it has recovered.
    """

    def __init__(self, share: float = 0.6, dead_steps: int = 200, start: int = 50) -> None:
        """
        Args:
            share: Greatest share of a layer's slots that one expert may take; never less than twice an even share.
            dead_steps: Steps without a single token after which an expert counts as dead.
            start: Steps before the first look.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share: got {share}, expected more than 0 and at most 1")
        self.share, self.dead_steps, self.start = share, dead_steps, start
        self.idle: dict[int, np.ndarray] = {}
        self.raised: set[tuple[str, int]] = set()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the report of this step, if there is one."""
        report = getattr(pl_module, "report", None)
        if report is None or not report.load or report.step < self.start or not trainer.is_global_zero:
            return
        for i, parts in enumerate(zip(*report.load.values(), strict=True)):
            self._look(i, np.sum(parts, axis=0), report.step, report.steps)

    def _look(self, layer: int, load: np.ndarray, step: int, covered: int) -> None:
        share = load / max(float(load.sum()), 1.0)
        worst, limit = int(share.argmax()), max(self.share, min(2 / len(load), 1.0))
        self._say(
            ("share", layer),
            len(load) > 1 and share[worst] > limit,
            f"step {step}: in MoE layer {layer} expert {worst} takes {share[worst]:.0%} of the slots"
            f" (limit {limit:.0%})",
        )
        idle = np.where(load > 0, 0, self.idle.get(layer, np.zeros(len(load))) + covered)
        self.idle[layer] = idle
        dead = [int(e) for e in np.flatnonzero(idle >= self.dead_steps)]
        self._say(
            ("dead", layer),
            bool(dead),
            f"step {step}: in MoE layer {layer} no token has chosen the experts {dead} for {self.dead_steps} steps",
        )

    def _say(self, key: tuple[str, int], bad: bool, finding: str) -> None:
        if not bad:
            self.raised.discard(key)
        elif key not in self.raised:
            self.raised.add(key)
            warnings.warn(f"routing collapses: {finding}; {FIXES}", CollapseWarning, stacklevel=2)
