"""A metrics.csv that survives resuming: rows of steps that are done again are replaced, the others stay."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class CSVLog(Logger):
    """Appends one row per step to a CSV file; columns are added as they come up."""

    def __init__(self, path: str | None = None) -> None:
        """
        Args:
            path: The file; metrics.csv in the trainer's default_root_dir where left out.
        """
        super().__init__()
        self._path = None if path is None else Path(path)
        self.columns: list[str] = []
        self.begun = False

    def place(self, folder: Path) -> None:
        """Names the run's folder, where no file was given."""
        self._path = self._path or folder / "metrics.csv"

    @property
    def path(self) -> Path:
        """The file. Raises ValueError as long as nothing has named it."""
        if self._path is None:
            raise ValueError("path: none given to CSVLog, and no trainer of ours has named the run's folder")
        return self._path

    @property
    def name(self) -> str:
        """csv."""
        return "csv"

    @property
    def version(self) -> str:
        """Only one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are in the checkpoint; nothing is written here."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes a row."""
        row = {"step": str(step), **{k: f"{float(v):.6g}" for k, v in metrics.items() if k != "epoch"}}
        if not self.begun:
            self._begin(int(step or 0))
        new = [key for key in row if key not in self.columns]
        if new:
            self._rewrite([*self.columns, *new], self.rows())
        with self.path.open("a", newline="", encoding="utf-8") as handle:
            csv.DictWriter(handle, self.columns, restval="").writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """What has been written."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))

    def _begin(self, step: int) -> None:
        """Keeps the rows before the first step that is logged now."""
        self.begun = True
        kept = [row for row in self.rows() if int(row["step"]) < step]
        self._rewrite(list(dict.fromkeys(["step", *(key for row in kept for key in row)])), kept)

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self.columns = columns
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        with beside.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(self.path)
