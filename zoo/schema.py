"""What can be written in a spec: the keys of every registered part, read from its class and its docstring."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union

from zoo import registry
from zoo.spec import dump

KEY = re.compile(r"^ *(\w+(?:, \w+)*)  +(\S.*)$")


def document(part: str) -> str:
    """The keys of a part: "top_p", "router.top_p", or a kind ("router") for the list of its types.

    Raises RegistryError with the near miss where there is no such part or kind.
    """
    if part in registry.kinds() and not _named(part):
        return _kind(part)
    kind, _, name = part.rpartition(".")
    if kind:
        return _part(kind, name)
    found = _named(part)
    if not found:
        choices = sorted({*registry.kinds(), *(n for k in registry.kinds() for n in registry.names(k))})
        near = registry.nearest(part, choices)
        raise registry.RegistryError(
            f"no part {part!r}{near}; `zoo show --schema KIND` lists: {', '.join(registry.kinds())}"
        )
    texts = [_part(kind, part) for kind in found]
    return "\n\n".join([*texts, *([_kind(part)] if part in registry.kinds() else [])])


def _named(name: str) -> list[str]:
    """The kinds that have a type of this name."""
    return [kind for kind in registry.kinds() if name in registry.names(kind)]


def _kind(kind: str) -> str:
    names = registry.names(kind)
    width = max(map(len, names), default=0)
    lines = [f"  {name:<{width}}  {_summary(registry.get(kind, name))}" for name in names]
    return "\n".join([f"{kind}: one of", *lines])


def _summary(cls: type) -> str:
    text = (inspect.getdoc(cls) or "").partition("\n\n")[0]
    return " ".join(text.split())


def _part(kind: str, name: str) -> str:
    cls = registry.get(kind, name)
    lines = [f"{kind} {name}: {_summary(cls)}", "", f"  type: {name}", *_keys(cls, "  ")]
    return "\n".join(lines)


def _keys(cls: type, indent: str) -> Iterator[str]:
    """A line per key, and below a nested mapping its keys."""
    meanings, hints = _meanings(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint = hints[field.name]
        yield f"{indent}{field.name}: {_default(field)}  # {_type(hint)}"
        if field.name in meanings:
            yield f"{indent}    {meanings[field.name]}"
        nested = _nested(hint)
        if nested is not None:
            yield from _keys(nested, indent + "  ")


def _meanings(cls: type) -> dict[str, str]:
    """key -> meaning, from lines `key   meaning` in the docstrings of the class and its bases; the class's own win."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        key: list[str] = []
        for line in (inspect.cleandoc(base.__doc__) if base.__doc__ else "").splitlines():
            match = KEY.match(line)
            if match and not line.startswith("   "):
                key = match[1].split(", ")
                found |= dict.fromkeys(key, match[2])
            elif key and line.startswith(" "):
                found |= {k: f"{found[k]} {line.strip()}" for k in key}
            else:
                key = []
    return found


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "(required)"
    return json.dumps(dump(value), ensure_ascii=False)


def _type(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _type(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if origin in (dict, Mapping):
        return f"mapping to {_type(args[1])}"
    kind = getattr(hint, "kind", None)
    if kind is not None:
        return f"{kind}: {', '.join(registry.names(kind))}" if kind in registry.kinds() else str(kind)
    return "mapping" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def _nested(hint: Any) -> type | None:
    """The dataclass behind a key whose keys are fixed (no socket), through `| None` and lists."""
    options = [hint, *typing.get_args(hint)]
    return next((h for h in options if dataclasses.is_dataclass(h) and not hasattr(h, "kind")), None)  # type: ignore[return-value]
