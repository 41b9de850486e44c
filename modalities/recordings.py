"""Own recordings as raw examples: read when they are asked for, held out by their paths."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modalities.base import Raw

Row = Mapping[str, object]


class Lazy(Sequence[Raw]):
    """Raw examples that are read when they are asked for."""

    def __init__(self, count: int, read: Callable[[int], Raw]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # one example, or a list of them for a slice
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(self._count))]
        return self._read(range(self._count)[index])


def of_split(rows: Sequence[Row], column: str, root: Path, split: str, share: float) -> list[Row]:
    """The rows of a split, `share` of them being held out: which ones follows from the paths in `column` below the root
    and nothing else. A single row is in every split."""
    if len(rows) == 1:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda i: hashlib.sha256(_below(root, rows[i][column])).digest())
    held = set(order[: max(round(len(rows) * share), 1)])
    return [row for i, row in enumerate(rows) if (i in held) != (split == "train")]


def check_reading(rate: int, seconds: float, test: float) -> None:
    """Raises ValueError("key: ...") where recordings cannot be read or split so."""
    if rate < 1000:
        raise ValueError(f"rate: got {rate}, expected samples per second, at least 1000")
    if not seconds > 0:
        raise ValueError(f"seconds: got {seconds}, expected more than 0")
    if not 0 < test < 1:
        raise ValueError(f"test: got {test}, expected more than 0 and less than 1")


def _below(root: Path, path: object) -> bytes:
    return os.path.relpath(str(path), root if root.is_dir() else root.parent).encode()
