"""Series from CSV and JSONL files, and the figure of a forecast."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modalities.manifest import read_rows, read_text

Named = tuple[str, list[float]]


def read_series(path: Path, column: str = "series") -> list[Named]:
    """(name, values) of every series in a folder, a CSV or a JSONL file.

    A CSV with `column` holds a list of numbers per row ("1.5 2 3" or "[1.5, 2, 3]"); one without it holds a series
    per column, columns that are not numbers (dates) being left out. A JSONL file holds a list under `column`.
    Raises FileNotFoundError or ValueError naming the file, the row and the column.
    """
    found: list[Named] = []
    for row in read_rows(path, "file", (".csv", ".jsonl")):
        file = Path(str(row["file"]))
        if file.suffix.lower() == ".jsonl" or column in _header(file):
            found += [_listed(file, i, r, column) for i, r in enumerate(read_rows(file, column, ()), 1)]
        else:
            found += _wide(file)
    return found


def _header(file: Path) -> list[str]:
    return next(csv.reader(io.StringIO(read_text(file), newline="")), [])


def _listed(file: Path, number: int, row: dict[str, Any], column: str) -> Named:
    value, name = row[column], str(row.get("name") or f"{file.stem}, row {number}")
    if isinstance(value, str):
        value = value.strip().strip("[]").replace(",", " ").split()
    if not isinstance(value, list):
        raise ValueError(f"{file}, row {number}: column {column!r} is {type(value).__name__}, expected numbers")
    return name, [_number(v, f"{file}, row {number}, value {i}") for i, v in enumerate(value)]


def _wide(file: Path) -> Iterator[Named]:
    rows = list(csv.DictReader(io.StringIO(read_text(file), newline="")))
    if not rows:
        raise ValueError(f"{file}: no rows, expected a header and numbers below it")
    columns = [c for c in rows[0] if c is not None and _is_number(next((r[c] for r in rows if r[c]), None))]
    if not columns:
        raise ValueError(f"{file}: no column of numbers; it has {sorted(map(str, rows[0]))}")
    for name in columns:
        yield name, [_number(r[name], f"{file}, row {i}, column {name!r}") for i, r in enumerate(rows, 1)]


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _number(value: object, where: str) -> float:
    if not _is_number(value):
        raise ValueError(f"{where}: got {value!r}, expected a number; fill or cut the gap")
    return float(str(value))


def draw_forecast(
    path: Path,
    context: np.ndarray,
    truth: np.ndarray,
    forecast: np.ndarray,
    *,
    title: str,
    step: str,
    unit: str,
) -> Path:
    """Writes a PNG with the context, what came after it and what was forecast; row 0 is the first forecast value.

    context [n], truth [h] and forecast [h] are in `unit`; rows are `step`. Written beside, then renamed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    ahead: Sequence[int] = range(len(truth))
    axes.plot(range(-len(context), 0), context, color="0.55", label="context")
    axes.plot(ahead, truth, color="tab:blue", label="truth")
    axes.plot(ahead, forecast, color="tab:orange", label="forecast")
    axes.axvline(-0.5, color="0.8", linewidth=1)
    value = f"value ({unit})" if unit else "value"
    axes.set(title=title, xlabel=f"{step} from the start of the forecast", ylabel=value)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    figure.savefig(partial, format="png", dpi=120)
    return partial.replace(path)
