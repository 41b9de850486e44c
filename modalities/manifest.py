"""A user's own data: a folder of files or a manifest (JSONL or CSV), read to rows with checked columns."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def read_rows(
    path: str | Path, column: str, suffixes: Sequence[str], *, files: Sequence[str] = (), needs: Sequence[str] = ()
) -> list[dict[str, str | Path | object]]:
    """Rows of a folder or manifest.

    A folder gives one row per file with one of `suffixes` (searched below it, sorted by path): {column: Path}, and,
    when the file lies in a subfolder, {"label": name of that subfolder}. A manifest gives one row per line; columns
    named in `files` become paths relative to the manifest and must exist; those in `needs` must be present.

    Raises FileNotFoundError or ValueError naming the path, the row and the column.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes)
        if not found:
            raise FileNotFoundError(f"{path}: no file with suffix {', '.join(suffixes)} in this folder")
        return [
            {column: p} | ({"label": p.parent.relative_to(path).as_posix()} if p.parent != path else {}) for p in found
        ]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix.lower() in suffixes:
        return [{column: path}]
    rows = []
    for number, row in _lines(path):
        for name in (column, *needs):
            if name not in row:
                near = difflib.get_close_matches(name, list(row), n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(f"{path}, row {number}: no column {name!r}; it has {sorted(row)}{hint}")
            if row[name] in (None, ""):
                raise ValueError(f"{path}, row {number}: column {name!r} is empty; fill it or remove the row")
        for name in files:
            if row.get(name):
                target = path.parent / str(row[name])
                if not target.is_file():
                    raise FileNotFoundError(
                        f"{path}, row {number}: column {name!r} names {target}, which does not exist"
                    )
                row[name] = target
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: the manifest has no rows")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """(row number, row) of a JSONL or CSV file; rows count from 1, a CSV header not counted."""
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(f"{path}: a manifest ends in .jsonl or .csv, got {suffix or 'no suffix'!r}")
    yield from readers[suffix](path, read_text(path))


def read_text(path: Path) -> str:
    """A UTF-8 file, its byte-order mark left out. Raises ValueError naming the file and the byte that is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from error


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    for i, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
        if None in row:
            raise ValueError(f"{path}, row {i}: more cells than the header has columns; quote cells with commas")
        yield i, dict(row)


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    # Not str.splitlines: U+2028 and the like may stand inside a JSON string.
    for i, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, row {i}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(row, Mapping):
            raise ValueError(f"{path}, row {i}: expected an object with columns, got {type(row).__name__}")
        yield i, dict(row)
