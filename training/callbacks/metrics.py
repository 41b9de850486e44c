"""Sends the module's reports to the loggers."""

from __future__ import annotations

from typing import Any

import lightning as L


class Metrics(L.Callback):
    """Logs loss per modality, load per expert, null share, mean k, tokens per second ... whenever there is a report
    (every `log_every_n_steps` of the trainer)."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the report of this step, if there is one."""
        report = getattr(pl_module, "report", None)
        if report is not None:
            for logger in trainer.loggers:
                logger.log_metrics(report.scalars, step=report.step)
