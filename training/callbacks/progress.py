"""A progress bar that shows what matters in a mixture of experts."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

SHOWN = {"routing/null_share": "null", "routing/mean_k": "k", "tokens_per_second": "tok/s"}


class Progress(TQDMProgressBar):
    """Steps done of all steps, with loss per modality, null share, mean k and tokens per second."""

    def __init__(self, refresh_rate: int = 10) -> None:
        """
        Args:
            refresh_rate: Steps between redraws.
        """
        super().__init__(refresh_rate=refresh_rate)
        self.figures: dict[str, str] = {}

    @property
    def total_train_batches(self) -> int | float:
        """All steps of the run; the stream itself has no end."""
        total = super().total_train_batches
        return self.trainer.max_steps if total == float("inf") and self.trainer.max_steps > 0 else total

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes over the figures of a report, then redraws."""
        report = getattr(pl_module, "report", None)
        if report is not None:
            losses = {k.split("/")[1]: f"{v:.3f}" for k, v in report.scalars.items() if k.endswith("/loss")}
            others = {short: f"{report.scalars[k]:.3g}" for k, short in SHOWN.items() if k in report.scalars}
            self.figures.update(losses | others)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return {**shown, **self.figures}
