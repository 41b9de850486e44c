"""Saved models on the way of a training, to be averaged afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

FOLDER = "weights"


class KeepWeights(L.Callback):
    """Saves the model as `weights/step-00000500` in the run's folder, every so many steps from one on; the newest stay.

    `zoo average` makes one model of them, which at a constant learning rate stands for a falling one (Ling 2.0).
    """

    def __init__(self, every: int, start: int = 0, last: int = 10, folder: str | None = None) -> None:
        """
        Args:
            every: Steps between saved models.
            start: Steps before the first one.
            last: How many are kept.
            folder: Where they go; `weights` in the trainer's default_root_dir where left out.
        """
        for name, value in (("every", every), ("last", last)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected 1 or more")
        self.every, self.start, self.last, self.folder = every, start, last, folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises ValueError where no rank holds the whole model."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError("KeepWeights: cannot save a model that ModelParallelStrategy shards; leave one out")

    def target(self, trainer: L.Trainer) -> Path:
        """The folder of the saved models."""
        return Path(self.folder or Path(trainer.default_root_dir) / FOLDER)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time, and removes the oldest above `last`."""
        from zoo.hub.weights import save

        step = trainer.global_step
        if step < max(self.start, 1) or step % self.every or not trainer.is_global_zero:
            return
        target = self.target(trainer)
        save(pl_module.model, target / f"step-{step:08d}", overwrite=True)  # type: ignore[arg-type]
        for old in sorted(target.glob("step-*"))[: -self.last]:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
