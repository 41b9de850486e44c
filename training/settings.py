"""Plain settings as keyword arguments of a call, and the record of what a stage was begun with."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.registry import nearest
from zoo.spec import SpecError, convert

RECORD = "stage.json"


def arguments(
    call: Callable[..., Any], settings: Mapping[str, Any], path: str, reserved: Sequence[str] = ()
) -> dict[str, Any]:
    """`settings` as keyword arguments of a function or class, converted by its type hints; `reserved` ones belong to
    the caller. Raises SpecError naming a key that it does not take, or a value of another type."""
    hints = typing.get_type_hints(call.__init__ if isinstance(call, type) else call)  # type: ignore[misc]
    known = [key for key in inspect.signature(call).parameters if key not in reserved]
    for key in settings:
        if key not in known:
            raise SpecError(f"{path}: unknown key {key!r}{nearest(str(key), known)}; expected {', '.join(known)}")
    return {key: convert(hints[key], value, f"{path}.{key}") for key, value in settings.items()}


def remember(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes what a stage is begun with into its folder, or compares with what it was begun with.

    Raises FileExistsError naming the first setting that has changed: weights trained with other settings would be
    passed off as the new ones'.
    """
    record, wanted = folder / RECORD, json.loads(json.dumps(settings))
    if record.exists():
        change = _difference(json.loads(record.read_text(encoding="utf-8")), wanted, "")
        if change is not None:
            raise FileExistsError(
                f"{folder}: was begun with other settings ({change}); take another folder (--output), or remove it"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    beside = record.with_suffix(".tmp")
    beside.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    beside.replace(record)


def _difference(old: Any, new: Any, path: str) -> str | None:
    """The first place where two plain values differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            found = _difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found is not None:
                return found
        return None
    return None if old == new else f"{path}: {old!r}, now {new!r}"
