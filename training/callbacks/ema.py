"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class EMA(WeightAveraging):
    """Averages parameters after every optimiser step; validation uses the average, and so does `state_dict` in a
    checkpoint. Training ends with the average in the model.

    Unlike Lightning's EMAWeightAveraging it copies buffers as they are (codebooks, names of speakers and statistics
    are fitted, not trained; averaging whole numbers would spoil them) and averages all tensors in one call.
    """

    def __init__(self, decay: float = 0.999, start: int = 0, every: int = 1) -> None:
        """
        Args:
            decay: Weight of the average at an update.
            start: Steps before averaging begins.
            every: Steps between updates.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay: got {decay}, expected 0 <= decay < 1")
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.start, self.every = start, every

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the average before training begins."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError("EMA: cannot average a model that ModelParallelStrategy shards; leave one of them out")
        if stage == "fit":
            self._average_model = AveragedModel(pl_module, use_buffers=False, **self._kwargs)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After steps only."""
        return step_idx is not None and step_idx >= self.start and step_idx % self.every == 0

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores average and current weights for fit; elsewhere the checkpoint's own weights are the average."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the average into the model also where a finished run was only loaded again."""
        self._copy_average_to_current(pl_module)
