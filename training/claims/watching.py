"""What the laboratory notes down while a model trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import lightning as L

from training.meter import Report
from zoo.moe.layer import MoE


class Watch(L.Callback):
    """Points of the training loss with what the MoE layers did, and this thread's CPU time.

    points   (step, mean loss since the point before, routed experts per token of each MoE layer, greatest over mean
             load of the routed experts in the worst layer)
    seconds  of all steps but the first, which also loads kernels
    """

    def __init__(self, every: int, tick: Callable[[float], None] | None = None) -> None:
        """
        Args:
            every: Steps between points.
            tick: Called after each step with the last known loss.
        """
        super().__init__()
        self.every, self.tick = every, tick
        self.points: list[tuple[int, float, list[float], float]] = []
        self.begun: float | None = None
        self.seconds = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the time, and the report where there is one."""
        now = time.thread_time()
        if self.begun is None:
            self.begun = now
        self.seconds = now - self.begun
        report: Report | None = getattr(pl_module, "report", None)
        if report is not None and (not self.points or self.points[-1][0] != report.step):
            layers: list[MoE] = pl_module.model.moe_layers()  # type: ignore[union-attr,operator]
            self.points.append((report.step, loss_of(report), routed_k(report, layers), load_ratio(report, layers)))
        if self.tick is not None:
            self.tick(self.points[-1][1] if self.points else float("nan"))


def loss_of(report: Report) -> float:
    """The training loss of a run with one modality."""
    return next(v for k, v in report.scalars.items() if k.startswith("train/") and k.endswith("/loss"))


def routed_k(report: Report, layers: list[MoE]) -> list[float]:
    """Routed experts that a token used, per MoE layer, over the report's steps."""
    if not layers:
        return []
    (loads,) = report.load.values()
    tokens = sum(float(load.sum()) for load in loads) / max(report.scalars["routing/mean_k"], 1e-9)
    each = max(tokens / len(layers), 1e-9)
    return [float(load[: layer.pool.routed].sum()) / each for load, layer in zip(loads, layers, strict=True)]


def load_ratio(report: Report, layers: list[MoE]) -> float:
    """Greatest over mean load of the routed experts in the worst layer; not a number without one."""
    if not layers:
        return math.nan
    (loads,) = report.load.values()
    routed = [load[: layer.pool.routed] for load, layer in zip(loads, layers, strict=True)]
    return max(float(load.max() * len(load) / max(load.sum(), 1e-9)) for load in routed)
