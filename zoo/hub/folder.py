"""Folders that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modalities.text.tokenizer_files import TEXT_FILES
from zoo.hub import config
from zoo.hub.tensors import INDEX, SINGLE

EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
HERE = -100  # AT_FDCWD


def check_target(folder: Path, overwrite: bool) -> None:
    """Raises FileExistsError where `folder` may not be written: it exists and `overwrite` is off, or it holds files
    that are not a saved model's. An empty folder may always be filled."""
    if folder.is_file() or folder.is_symlink():
        raise FileExistsError(f"{folder}: is a file or a link, expected a folder or nothing")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{folder}: already exists; choose another folder, or overwrite it (--overwrite)")
    foreign = sorted(path.name for path in folder.iterdir() if not _ours(path))
    try:
        config.read(folder / "config.json")
    except (OSError, ValueError) as error:
        raise FileExistsError(f"{folder}: is no saved model ({error}), so it is not overwritten") from error
    if foreign:
        raise FileExistsError(f"{folder}: also holds {', '.join(foreign[:5])}, which overwriting would delete; move it")


def _ours(path: Path) -> bool:
    shard = path.name.startswith("model-") and path.name.endswith(".safetensors")
    return path.is_file() and (shard or path.name in {"config.json", "README.md", SINGLE, INDEX, *TEXT_FILES})


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into, put in its place when the block ends without an error.

    What stood there before stays until then, whatever happens. A leftover of a killed process (`.NAME.PID.part`) is
    never read.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    mode = beside.stat().st_mode & 0o666  # what the umask leaves; safetensors would keep files to their owner
    try:
        yield beside
        for path in beside.iterdir():
            path.chmod(mode)
            _flush(path)
        _flush(beside)
        _swap(beside, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _flush(path: Path) -> None:
    """To the disk, so that after a power cut the name never points to a half-written file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, place: Path) -> None:
    """Puts `new` at `place`; where something stood there, `new` is the name of the old content afterwards."""
    if not place.exists() or not any(place.iterdir()):
        new.rename(place)  # replaces an empty folder
    elif not _exchange(new, place):
        old = place.with_name(f".{place.name}.{os.getpid()}.old")
        place.rename(old)
        try:
            new.rename(place)
        except OSError:
            old.rename(place)
            raise
        old.rename(new)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two names in one step; False where the system cannot (then two renames leave a short gap)."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(HERE, os.fsencode(a), HERE, os.fsencode(b), EXCHANGE) == 0
