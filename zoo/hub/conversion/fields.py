"""A foreign config.json, read field by field: what nobody reads is an error, not ignored."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, overload

from zoo.registry import nearest
from zoo.spec import SpecError

T = TypeVar("T", int, float, str, bool, list[Any])
D = TypeVar("D")
MOST_LAYERS = 10_000


class Missing:
    """Stands for a default that there is none."""


REQUIRED = Missing()


class Fields:
    """The fields of a configuration. Each that is read is marked; `finish` refuses the rest by name.

    A field that is null counts as absent, as the library that writes these files has it.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._content, self._where = dict(content), where
        self._seen: set[str] = set()
        self._children: list[Fields] = []

    @overload
    def get(self, name: str | tuple[str, ...], kind: type[T]) -> T: ...
    @overload
    def get(self, name: str | tuple[str, ...], kind: type[T], default: D) -> T | D: ...
    def get(self, name: str | tuple[str, ...], kind: type[T], default: Any = REQUIRED) -> Any:
        """A field of a type, or its default. Several names are spellings of one field, which must agree.

        Raises SpecError where it is missing without a default, or of another type.
        """
        names = (name,) if isinstance(name, str) else name
        self._seen.update(names)
        found = {n: self._content[n] for n in names if self._content.get(n) is not None}
        if not found:
            if default is REQUIRED:
                raise self.error(names[0], "missing")
            return default
        first, *others = (self._typed(n, kind, value) for n, value in found.items())
        if any(other != first for other in others):
            raise self.error(names[0], f"given as {' and as '.join(f'{n} = {v!r}' for n, v in found.items())}")
        return first

    def optional(self, name: str, kind: type[T], default: T | None) -> T | None:
        """A field for which null says none, other than leaving it out, which says the default."""
        return self.get(name, kind, None if name in self._content else default)

    def raw(self, name: str, default: Any = None) -> Any:
        """A field of any type, as it stands there."""
        self._seen.add(name)
        return self._content.get(name, default)

    def _typed(self, name: str, kind: type[Any], value: Any) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(name, f"got {value!r}, expected {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(name, f"got {value}, expected a finite number")
        return value

    def count(self, name: str = "num_hidden_layers") -> int:
        """A number of layers, 1 to 10000."""
        value = self.get(name, int)
        if not 1 <= value <= MOST_LAYERS:
            raise self.error(name, f"got {value}, expected 1..{MOST_LAYERS}")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Reads a field that may be absent or one of these values, and refuses any other."""
        self._seen.add(name)
        value = self._content.get(name)
        if value is not None and not any(
            value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed
        ):
            raise self.error(name, f"got {value!r}, supported is {' or '.join(map(repr, allowed))}")

    def child(self, name: str) -> Fields | None:
        """A nested mapping, whose fields are marked apart; None where it is absent, null or empty."""
        self._seen.add(name)
        value = self._content.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise self.error(name, f"got {value!r}, expected a mapping")
        found = Fields(value, f"{self._where}: {name}")
        self._children.append(found)
        return found

    def error(self, name: str, what: str) -> SpecError:
        """An error about one field, to be raised."""
        return SpecError(f"{self._where}: {name}: {what}")

    def unread(self) -> dict[str, Any]:
        """Fields of this level that were not read so far."""
        return {name: value for name, value in self._content.items() if name not in self._seen}

    def finish(self, harmless: Collection[str]) -> dict[str, Any]:
        """The fields that were left unread because they are harmless. Raises SpecError that lists all others that say
        anything: a null says nothing."""
        rest = self.unread()
        refused = {name: value for name, value in rest.items() if name not in harmless and value is not None}
        if refused:
            known = sorted(self._seen)
            listed = "; ".join(f"{n} = {_short(v)}{nearest(n, known)}" for n, v in sorted(refused.items()))
            raise SpecError(
                f"{self._where}: not honoured here, so refused rather than ignored: {listed}; remove one from "
                "config.json only where it is known to change no output"
            )
        for child in self._children:
            child.finish(())
        return {name: value for name, value in rest.items() if name in harmless}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
