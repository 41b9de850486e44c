"""Training checkpoints on disk: written beside and renamed, read as tensors and plain types only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO


class AtomicCheckpointIO(CheckpointIO):
    """One file per checkpoint. A kill or a full disk while saving leaves the previous file as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes to a file beside `path`, waits for the disk, then renames."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with beside.open("wb") as handle:
                torch.save(checkpoint, handle)
                handle.flush()
                os.fsync(handle.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(target.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, never with code in it, whatever `weights_only` says.

        Raises FileNotFoundError, or ValueError where the file is no checkpoint or holds more than plain types.
        """
        try:
            loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever a foreign or truncated file makes of the reader
            raise ValueError(f"{path}: no training checkpoint of ours: {str(error).splitlines()[0]}") from error
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes the file if it is there."""
        Path(path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder durable, where the system lets one."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
