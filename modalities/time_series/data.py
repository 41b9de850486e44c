"""Where series come from: ETTh1, the embedded El Nino temperatures, one's own files.

A raw example is one channel: {"series": float32 [n], "start": first row that is held out (test and validation only),
"name", "period": rows of a season, "step": what a row is, "unit", "mean", "std"}. Series are z-scored with the mean
and deviation of their training part; `mean` and `std` lead back to `unit`.
"""

from __future__ import annotations

import csv
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modalities.base import DataSpec, Raw
from modalities.roots import data_root, find, require
from modalities.time_series.files import read_series
from modalities.time_series.values import as_series, moments

ETTH1 = "ett/ETTh1.csv"
SOURCE = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv"
EMBEDDED = Path(__file__).parent / "embedded" / "el_nino.csv"
BOXES = {"nino12": "Nino 1+2", "nino3": "Nino 3", "nino4": "Nino 4", "nino34": "Nino 3.4"}


def channel(values: np.ndarray, borders: tuple[int, int, int], split: str, **about: object) -> Raw:
    """One series, scaled by its training part, cut for a split.

    `borders` are the ends of the training, validation and test part. Training rows stand alone; the held-out splits
    keep what came before them as context, `start` being their first row.
    """
    train, validation, test = borders
    mean, std = (float(x) for x in moments(torch.from_numpy(values[:train].astype(np.float64))))
    scaled = ((values - mean) / std).astype(np.float32)
    about = {**about, "mean": mean, "std": std}
    if split == "train":
        return {"series": scaled[:train], **about}
    start, end = (train, validation) if split == "validation" else (validation, test)
    return {"series": scaled[:end], "start": start, **about}


@dataclass(frozen=True, kw_only=True)
class ETTh1Spec(DataSpec):
    """ETTh1: seven hourly channels of an electricity transformer, 8640 / 2880 / 2880 rows. It has no keys."""

    def available(self) -> bool:
        """Whether the file is below the data root."""
        return find(ETTH1) is not None

    def build(self, split: str) -> Sequence[Raw]:
        """The seven channels of the split."""
        path = require(ETTH1, "modalities.time_series.data.download()")
        with path.open(newline="") as handle:
            header, *rows = csv.reader(handle)
        table = np.array([row[1:] for row in rows], dtype=np.float64)
        return [
            channel(
                table[:, i],
                (8640, 11520, 14400),
                split,
                name={"OT": "oil temperature"}.get(name, f"load {name}"),
                unit="°C" if name == "OT" else "units of the data set",
                step="hours",
                period=24,
            )
            for i, name in enumerate(header[1:])
        ]


@dataclass(frozen=True, kw_only=True)
class ElNinoSpec(DataSpec):
    """Monthly sea surface temperature in four boxes of the Pacific, 1950 to 2010, embedded. It has no keys."""

    def build(self, split: str) -> Sequence[Raw]:
        """The four boxes; the last 20 % of the months are test, 10 % before them validation."""
        with EMBEDDED.open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        about = {"unit": "°C", "step": "months", "period": 12}
        return [
            channel(
                np.array([float(row[key]) for row in rows]),
                _borders(len(rows), 0.2),
                split,
                name=f"sea surface temperature, {name}",
                **about,
            )
            for key, name in BOXES.items()
        ]


@dataclass(frozen=True, kw_only=True)
class SeriesFilesSpec(DataSpec):
    """Own series.

    path      a .csv whose numeric columns are series, a .jsonl or .csv with a list of numbers per row, or a folder
    column    the column that holds a list of numbers, where there is one
    test      share of each series, at its end, held out for test; half as much before it is validation
    period    rows of a season, for the seasonal baseline
    step      what a row is, for the axis of figures
    """

    path: str
    column: str = "series"
    test: float = 0.2
    period: int = 24
    step: str = "steps"

    def __post_init__(self) -> None:
        if not 0 < self.test <= 0.5:
            raise ValueError(f"test: got {self.test}, expected more than 0 and at most 0.5")
        if self.period < 1:
            raise ValueError(f"period: got {self.period}, expected at least 1")

    def build(self, split: str) -> Sequence[Raw]:
        """All series, cut for the split. Errors name the file, the row and the column."""
        out = []
        for name, values in read_series(Path(self.path), self.column):
            where = f"{self.path}, series {name!r}"
            checked = as_series(values, 4, name=where).numpy()
            borders = _borders(len(checked), self.test)
            if np.ptp(checked[: borders[0]]) == 0:
                raise ValueError(f"{where}: is constant in its training part ({checked[0]:g}); leave it out")
            out.append(channel(checked, borders, split, name=name, unit="", step=self.step, period=self.period))
        return out


def _borders(length: int, test: float) -> tuple[int, int, int]:
    return round(length * (1 - 1.5 * test)), round(length * (1 - test)), length


def download() -> Path:
    """Fetches ETTh1 from its public source to the data root; returns its path."""
    target = data_root() / ETTH1
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    urllib.request.urlretrieve(SOURCE, partial)
    return partial.replace(target)
