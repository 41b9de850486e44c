"""TensorBoard's files in the run's folder."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoardLog(TensorBoardLogger):
    """Lightning's logger, writing to `tensorboard` in one folder."""

    def __init__(self, folder: str | None = None) -> None:
        """
        Args:
            folder: Where the folder `tensorboard` lies; the trainer's default_root_dir where left out.
        """
        super().__init__(folder or ".", name="tensorboard", version="")
        self.placed = folder is not None

    def place(self, folder: Path) -> None:
        """Names the run's folder, where none was given."""
        if not self.placed:
            self._root_dir, self.placed = str(folder), True
