"""Decoded outputs of `predict` as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
from torch import Tensor

from training.data import Fixed

FOLDER = "predictions"


class Predictions(L.Callback):
    """Writes `predictions/<source>.safetensors` in the run's folder, with a tensor per batch: 0000, 0001 ...

    Batches of a source come one after the other, so only one source is held. Each file is written beside and renamed.
    Several ranks write a file each, `<source>-<rank>.safetensors`. The metadata name the modality.
    """

    def __init__(self, folder: str | None = None, overwrite: bool = False) -> None:
        """
        Args:
            folder: Where the files go; `predictions` in the trainer's default_root_dir where left out.
            overwrite: Whether files that are there may be replaced.
        """
        self.folder, self.overwrite = folder, overwrite
        self.source, self.modality = "", ""
        self.held: list[Tensor] = []

    def target(self, trainer: L.Trainer) -> Path:
        """The folder of the files."""
        return Path(self.folder or Path(trainer.default_root_dir) / FOLDER)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses to bury earlier predictions, before anything is computed."""
        there = sorted(self.target(trainer).glob("*.safetensors")) if stage == "predict" else []
        if there and not self.overwrite:
            raise FileExistsError(
                f"{there[0]}: predictions are there already; pass --predictions.overwrite true, or another folder with "
                "--predictions.folder"
            )

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps a batch's outputs; a new source writes those of the one before."""
        source = cast(Fixed, trainer.predict_dataloaders).sources[batch_idx]
        if source != self.source:
            self._write(trainer)
            self.source = source
        for modality, values in outputs:
            self.modality = modality
            self.held.append(values.detach().cpu().contiguous())

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the last source."""
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        from safetensors.torch import save_file

        if not self.held:
            return
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.target(trainer) / f"{self.source}{rank}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.tmp")
        try:
            save_file({f"{i:04d}": held for i, held in enumerate(self.held)}, beside, {"modality": self.modality})
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        self.held = []
