"""Labelled images: the digits inside scikit-learn, CIFAR-10, and a user's own folder or manifest."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.base import DataSpec, Raw
from modalities.manifest import read_rows
from modalities.roots import find, require
from modalities.vision.files import SUFFIXES, read_image

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "validation", "test")


def stratified(labels: Sequence[Hashable], split: str) -> list[int]:
    """Indices of a split: of every ten examples of a class the eighth is for validation, the last two for test."""
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    seen: dict[Hashable, int] = defaultdict(int)
    chosen = []
    for index, label in enumerate(labels):
        place = seen[label] % 10
        seen[label] += 1
        if split == ("train" if place < 7 else "validation" if place == 7 else "test"):
            chosen.append(index)
    return chosen


@dataclass(frozen=True, kw_only=True)
class SklearnDigitsSpec(DataSpec):
    """1,797 handwritten digits, 8 x 8 grey pixels, from scikit-learn (UCI optical recognition of digits, test part).

    The split is fixed: per digit, of every ten images seven train, one validates, two test. It has no keys.
    """

    def available(self) -> bool:
        return importlib.util.find_spec("sklearn") is not None

    def build(self, split: str) -> Sequence[Raw]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        labels = [int(t) for t in digits.target]
        return [
            {"image": images[i], "label": labels[i], "classes": DIGITS, "text": f"a handwritten {DIGITS[labels[i]]}"}
            for i in stratified(labels, split)
        ]


@dataclass(frozen=True, kw_only=True)
class Cifar10Spec(DataSpec):
    """CIFAR-10, a fixed part of it: 6,000 training and 1,000 test images, 32 x 32 colour, below `ZOO_DATA`.

    The last tenth of each class's training images is for validation. It has no keys.
    """

    def available(self) -> bool:
        return find("cifar10/cifar10_6k.npz") is not None

    def build(self, split: str) -> Sequence[Raw]:
        if split not in SPLITS:
            raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
        path = require("cifar10/cifar10_6k.npz", "modalities.vision.cifar10.download()")
        with np.load(path, allow_pickle=False) as arrays:
            part = "test" if split == "test" else "train"
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
            classes = tuple(str(name) for name in arrays["classes"])
        keep = range(len(labels)) if split == "test" else _tail(labels, validation=split == "validation")
        return [
            {"image": images[i], "label": int(n), "classes": classes, "text": f"a photo of a {classes[n]}"}
            for i, n in ((i, labels[i]) for i in keep)
        ]


def _tail(labels: NDArray[np.int64], validation: bool) -> list[int]:
    """Indices of the last tenth of each class, or of all before it."""
    chosen: list[int] = []
    for label in np.unique(labels):
        index = np.flatnonzero(labels == label)
        cut = len(index) - len(index) // 10
        chosen += (index[cut:] if validation else index[:cut]).tolist()
    return sorted(chosen)


@dataclass(frozen=True, kw_only=True)
class ImageFilesSpec(DataSpec):
    """Your own images, read from disk when they are used.

    path      a folder with one subfolder per class (or train/, validation/, test/ folders of such), or a manifest
              (.jsonl, .csv) with the columns image, and label or text or both
    classes   class names in the order of their labels; sorted by name (or number) when left out
    """

    path: str
    classes: tuple[str, ...] = ()

    def available(self) -> bool:
        return Path(self.path).exists()

    def build(self, split: str) -> Sequence[Raw]:
        """Without own split folders, per class: seven of ten train, one validates, two test."""
        root = Path(self.path)
        own = (root / "train").is_dir()
        rows = self._rows(root / "train" if own else root)
        classes = self.classes or _class_names(rows)
        if own:
            rows = self._rows(root / split)
        else:
            rows = [rows[i] for i in stratified([row.get("label") for row in rows], split)]
        if not rows:
            raise ValueError(f"{self.path}: too few images for a {split} split, expected at least 10 per class")
        return ImageFiles(rows, classes, self.path)

    def _rows(self, path: Path) -> list[dict[str, object]]:
        rows = read_rows(path, "image", SUFFIXES, files=("image",))
        for number, row in enumerate(rows, 1):
            if row.get("label") in (None, "") and row.get("text") in (None, ""):
                raise ValueError(
                    f"{path}, row {number}: neither a label nor a text; put images into one subfolder per class, or"
                    " give a manifest with a column `label` or `text`"
                )
        return rows


def _class_names(rows: Sequence[dict[str, object]]) -> tuple[str, ...]:
    """Distinct labels in order: by number where all are numbers, else by name."""
    names = {str(row["label"]) for row in rows if row.get("label") not in (None, "")}
    return tuple(sorted(names, key=int) if all(n.isdecimal() for n in names) else sorted(names))


class ImageFiles(Sequence[Raw]):
    """Raw examples whose image is read when it is asked for."""

    def __init__(self, rows: Sequence[dict[str, object]], classes: tuple[str, ...], source: str) -> None:
        self._rows, self._classes = rows, classes
        for row in rows:
            label = row.get("label")
            if label not in (None, "") and str(label) not in classes:
                raise ValueError(f"{source}: {row['image']} has label {label!r}, expected one of {list(classes)}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._rows[index]
        raw: dict[str, object] = {"image": read_image(str(row["image"])), "classes": self._classes}
        if row.get("label") not in (None, ""):
            raw["label"] = self._classes.index(str(row["label"]))
        raw["text"] = str(row.get("text") or row.get("label"))
        return raw
