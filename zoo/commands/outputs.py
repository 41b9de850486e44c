"""Files that verbs write: never over what exists unless asked, and whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser

REMOTE = "read a checkpoint whose config.json names code to run, without that code"
REF = "an entry that has weights, a saved model's folder, a public checkpoint's folder, or hf:org/name@revision"
PRECISIONS = ("float32", "bfloat16", "float16")


def seed_option(p: ArgumentParser) -> None:
    """`--seed`."""
    p.add_argument("--seed", type=int, default=0, help="draws everything that is random (0)")


def target_options(p: ArgumentParser, says: str, required: bool = True) -> None:
    """`--out FILE` and `--overwrite`."""
    p.add_argument("--out", type=Path, required=required, metavar="FILE", help=says)
    p.add_argument("--overwrite", action="store_true", help="replace what is there")


def free(path: Path | None, overwrite: bool) -> None:
    """Raises FileExistsError where an output is there already and may not be replaced."""
    if path is not None and path.exists() and not overwrite:
        raise FileExistsError(f"{path}: already exists; choose another file, or give --overwrite")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """A CSV, written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(header)
            writer.writerows(rows)
        return beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
