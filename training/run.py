"""Training from Python, without the command line: one call per run, several runs in one process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from training.callbacks.checkpoint import LAST, LastCheckpoint, last_checkpoint
from training.callbacks.collapse import CollapseAlarm
from training.callbacks.metrics import Metrics
from training.checkpoint_io import AtomicCheckpointIO
from training.csv_log import CSVLog
from training.data import MixtureData
from training.module import UnifiedModule


def fit(
    model: UnifiedModule,
    data: MixtureData,
    *,
    max_steps: int,
    folder: str | Path,
    precision: Any = "32-true",
    accelerator: str = "auto",
    devices: int = 1,
    strategy: Any = "auto",
    log_every: int = 20,
    save_every: int = 500,
    val_every: int | None = None,
    ema: float | None = None,
    heat_maps: int | None = None,
    tensorboard: bool = True,
    progress: bool = True,
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Trains until `max_steps` and returns the run's last.ckpt; the model then holds the trained weights.

    folder      of the run: last.ckpt, metrics.csv, TensorBoard's files, routing/ with heat maps
    log_every   steps between rows of the logs; save_every, val_every, heat_maps likewise (None: never)
    ema         decay of averaged weights, None for none
    resume      whether to go on from the folder's last.ckpt where there is one; else such a folder is an error
    """
    folder = Path(folder)
    found = last_checkpoint(folder) if resume else None
    parts: list[Callback] = [Metrics(), CollapseAlarm()]
    if ema is not None:
        from training.callbacks.ema import EMA

        parts.append(EMA(ema))
    if heat_maps is not None:
        from training.callbacks.heat_maps import HeatMaps

        parts.append(HeatMaps(heat_maps))
    if progress:
        from training.callbacks.progress import Progress

        parts.append(Progress())
    with quiet():
        trainer = L.Trainer(
            default_root_dir=folder,
            max_steps=max_steps,
            max_epochs=-1,
            precision=precision,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            plugins=[AtomicCheckpointIO()],
            logger=loggers(folder, tensorboard),
            callbacks=[*parts, *callbacks, LastCheckpoint(save_every)],
            log_every_n_steps=log_every,
            val_check_interval=val_every,
            check_val_every_n_epoch=None,
            limit_val_batches=0 if val_every is None else None,
            num_sanity_val_steps=0,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        if found is not None:
            trainer.ckpt_path = str(found)  # known before setup, unlike an argument of fit
        trainer.fit(model, datamodule=data, weights_only=True)
    return folder / LAST


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's advice and its warnings about what is meant."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (".*Checkpoint directory .* exists.*", ".*LeafSpec.*", ".*does not have many workers.*"):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            log.setLevel(level)


def loggers(folder: Path, tensorboard: bool) -> list[Logger]:
    """metrics.csv and, where asked for, TensorBoard."""
    made: list[Logger] = [CSVLog(str(folder / "metrics.csv"))]
    if tensorboard:
        from training.tensorboard_log import TensorBoardLog

        made.append(TensorBoardLog(str(folder)))
    return made
