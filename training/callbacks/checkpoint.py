"""The `last` checkpoint and resuming from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

LAST = "last.ckpt"


def last_checkpoint(folder: str | Path) -> Path | None:
    """The last checkpoint of a run's folder, or None where it has none."""
    path, moved = Path(folder) / LAST, Path(folder) / f".{LAST}.old"
    if moved.exists() and not path.exists():  # killed between the two renames of a sharded checkpoint
        return moved
    return path if path.exists() else None


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` in the run's folder: every `every` steps and after the last one.

    A new run in a folder that has one is refused unless it goes on from it (`--ckpt_path auto`) or `overwrite` is set.
    """

    def __init__(self, every: int = 500, folder: str | None = None, overwrite: bool = False) -> None:
        """
        Args:
            every: Steps between checkpoints.
            folder: Where it lies; the trainer's default_root_dir where left out.
            overwrite: Whether a new run may replace an older run's checkpoint.
        """
        super().__init__(
            dirpath=folder,
            filename=LAST.removesuffix(".ckpt"),
            save_top_k=1,
            every_n_train_steps=every,
            enable_version_counter=False,
        )
        self.every, self.overwrite = every, overwrite

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses to bury another run's checkpoint."""
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir).absolute())
        found = last_checkpoint(self.dirpath)
        if stage == "fit" and found is not None and trainer.ckpt_path is None and not self.overwrite:
            raise FileExistsError(
                f"{found}: a run has been here; go on from it with --ckpt_path auto, take another folder, or set "
                "overwrite of LastCheckpoint"
            )
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time, and after the last step whatever the time."""
        due = trainer.global_step % self.every == 0 or trainer.global_step >= trainer.max_steps > 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))
