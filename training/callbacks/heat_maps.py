"""Routing heat maps as images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np


class HeatMaps(L.Callback):
    """Draws which experts each modality uses, layer by layer, since the last drawing.

    Writes `routing/step-<n>.png` in the run's folder, and the same figure to TensorBoard where that is a logger.
    """

    def __init__(self, every: int = 500, folder: str | None = None) -> None:
        """
        Args:
            every: Steps between drawings (the last step is always drawn); rounded up to steps that are logged.
            folder: Where the images go; `routing` in the trainer's default_root_dir where left out.
        """
        if every < 1:
            raise ValueError(f"every: got {every}, expected 1 or more steps")
        self.every, self.folder = every, folder
        self.load: dict[str, np.ndarray] = {}
        self.next = every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the report of this step, if there is one, and draws when it is time."""
        report = getattr(pl_module, "report", None)
        if report is None or not report.load or not trainer.is_global_zero:
            return
        for name, layers in report.load.items():
            self.load[name] = self.load.get(name, 0) + _rectangle(layers)
        if report.step >= self.next:
            self._draw(trainer, pl_module, report.step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws what is left."""
        if self.load and trainer.is_global_zero:
            self._draw(trainer, pl_module, int(getattr(pl_module, "done", trainer.global_step)))

    def _draw(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        from lightning.pytorch.loggers import TensorBoardLogger
        from matplotlib import pyplot

        from zoo.plots import routing_heatmap

        pools = [layer.pool for layer in pl_module.model.moe_layers()]
        figure = routing_heatmap(self.load, pools[0].null.count)
        target = Path(self.folder or Path(trainer.default_root_dir) / "routing") / f"step-{step:07d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}")
        figure.savefig(beside, format="png")
        os.replace(beside, target)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("routing", figure, step)
        pyplot.close(figure)
        self.load, self.next = {}, step + self.every


def _rectangle(layers: list[np.ndarray]) -> np.ndarray:
    """[layers, E]; layers with fewer experts are filled up with zeros."""
    width = max(len(layer) for layer in layers)
    return np.stack([np.pad(layer, (0, width - len(layer))) for layer in layers])
