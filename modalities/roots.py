"""Where real data sets lie on this machine: below the folder named by `ZOO_DATA`."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """The folder of downloaded data sets: `$ZOO_DATA`, or `~/.cache/moezoo/data`."""
    return Path(os.environ.get("ZOO_DATA") or Path.home() / ".cache" / "moezoo" / "data").expanduser()


def find(name: str) -> Path | None:
    """The path of a data file or folder below the data root, None where it is not there."""
    path = data_root() / name
    return path if path.exists() else None


def require(name: str, download: str) -> Path:
    """As `find`, but a missing set is an error that says how to get it."""
    path = find(name)
    if path is None:
        raise FileNotFoundError(
            f"{name} is not below {data_root()}; set ZOO_DATA to the folder that holds it, or call {download}"
        )
    return path
