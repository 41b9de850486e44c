"""Plain mappings to frozen specs and back; the only place that parses them.

A spec is a frozen keyword-only dataclass. A field may hold a number, a string, a Literal, a nested spec, a tuple or
mapping of these, or a *socket*: a dataclass with a class variable `kind`, whose `type:` key picks the registered
class (the socket's `default_type` where it is left out). Errors name the path in the YAML and the nearest valid choice:

    SpecError: backbone.layers[0].block.ffn.router: unknown key 'kk' (did you mean 'k'?)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from zoo import registry
from zoo.registry import nearest

T = TypeVar("T")
Plain = dict[str, Any]


class SpecError(ValueError):
    """A description that cannot be built; the message begins with the path of the offending key."""


@dataclass(frozen=True)
class Cost:
    """What a part costs, summed over parts.

    total   parameters held
    active  parameters used for one token (at the router's stated mean number of experts, where it varies)
    flops   floating-point operations of the forward pass for one token, 2 per multiply-add of matrix products
    """

    total: int = 0
    active: float = 0
    flops: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.total + other.total, self.active + other.active, self.flops + other.flops)

    def times(self, count: int) -> Cost:
        """`count` copies, all used."""
        return Cost(self.total * count, self.active * count, self.flops * count)


def linear_cost(inputs: int, outputs: int, bias: bool = False) -> Cost:
    """The cost of one linear map."""
    total = inputs * outputs + (outputs if bias else 0)
    return Cost(total, total, 2 * inputs * outputs)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def parse(cls: type[T], value: Any, path: str = "") -> T:
    """`value` (a plain mapping) as an instance of the spec class or socket `cls`.

    Raises SpecError naming the path, what was found and what was expected.
    """
    if not isinstance(value, Mapping):
        raise SpecError(f"{path or cls.__name__}: expected a mapping, got {type(value).__name__} ({value!r})")
    value = dict(value)
    kind = getattr(cls, "kind", None)
    if kind is not None:
        cls = _socket(cls, kind, value, path)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            known = ", ".join(fields) or "no keys"
            raise SpecError(f"{path or 'spec'}: unknown key {key!r}{nearest(key, list(fields))}; expected {known}")
    hints = _hints(typing.cast(type, cls))
    arguments = {k: convert(hints[k], v, _join(path, k)) for k, v in value.items()}
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise SpecError(f"{_join(path, name)}: missing; it has no default")
    try:
        return cls(**arguments)
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(_join(path, str(error))) from error


def _socket(cls: type, kind: str, value: dict[str, Any], path: str) -> type:
    if "type" not in value:
        if registry.is_registered(cls):
            return cls
        if hasattr(cls, "default_type"):
            return typing.cast(type, registry.get(kind, cls.default_type))
        raise SpecError(f"{_join(path, 'type')}: missing; expected one of {', '.join(registry.names(kind))}")
    try:
        found = registry.get(kind, value.pop("type"))
    except registry.RegistryError as error:
        raise SpecError(f"{_join(path, 'type')}: {error}") from error
    return typing.cast(type, found)


def convert(hint: Any, value: Any, path: str) -> Any:
    """`value` (plain) as what a type hint says. Raises SpecError beginning with `path`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, path)
    if origin is Literal:
        if value not in args:
            choices = ", ".join(map(repr, args))
            raise SpecError(f"{path}: got {value!r}, expected one of {choices}{nearest(value, [str(a) for a in args])}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{path}: expected a list, got {type(value).__name__} ({value!r})")
        any_length = origin is list or args[-1] is Ellipsis
        if not any_length and len(args) != len(value):
            raise SpecError(f"{path}: expected {len(args)} values, got {len(value)} ({value!r})")
        inner = [args[0]] * len(value) if any_length else args
        return origin(convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, int]):
        if not isinstance(value, Mapping):
            raise SpecError(f"{path}: expected a mapping, got {type(value).__name__} ({value!r})")
        return {str(k): convert(args[1], v, _join(path, str(k))) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else parse(typing.cast(type, hint), value, path)  # type: ignore[arg-type]
    return _scalar(hint, value, path)


def _convert_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for option in args:
        if option is type(None):
            continue
        try:
            return convert(option, value, path)
        except SpecError as error:
            errors.append(error)
    raise errors[-1] if len(errors) == 1 else SpecError("; or ".join(str(e) for e in errors))


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is float and isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", value):
        value = float(value)  # YAML 1.1 reads 1e-3 as a string
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{path}: got {value}, expected a finite number")
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise SpecError(f"{path}: expected {hint.__name__}, got {type(value).__name__} ({value!r})")


def dump(spec: Any) -> Any:
    """A spec as plain mappings, lists and scalars, every default written out; `parse` gives an equal spec back."""
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        kind = getattr(spec, "kind", None)
        head = {"type": registry.type_of(spec)} if kind is not None else {}
        return head | {f.name: dump(getattr(spec, f.name)) for f in dataclasses.fields(spec) if f.init}
    if isinstance(spec, (list, tuple)):
        return [dump(v) for v in spec]
    if isinstance(spec, Mapping):
        return {k: dump(v) for k, v in spec.items()}
    return spec


def override(plain: Mapping[str, Any], changes: Mapping[str, Any], of: type | None = None) -> Plain:
    """A plain description with values exchanged by dotted path: {"backbone.dim": 64, "backbone.layers.0.repeat": 2}.

    A mapping given for an existing mapping is merged unless it names another `type`. A path through something
    that does not exist is a SpecError with the near miss; given the spec class or socket that the description is `of`,
    a part that it leaves to its default does exist.
    """
    result: Plain = _copy(plain)
    for path, value in changes.items():
        keys = path.split(".")
        if of is not None:
            _write_default(result, keys[:-1], of)
        _set(result, keys, value, path)
    return result


def _write_default(plain: Plain, keys: Sequence[str], of: type) -> None:
    """Writes out the default of the first part along a path that the description leaves to it, if it does."""
    node: Any = plain
    for depth, key in enumerate(keys):
        if isinstance(node, dict) and key not in node:
            try:
                full: Any = dump(parse(of, plain))
            except SpecError:  # its own words come when all is overridden and parsed
                return
            for part in keys[: depth + 1]:
                full = _below(full, part)
            if isinstance(full, dict):
                node[key] = full
            return
        node = _below(node, key)


def _below(node: Any, key: str) -> Any:
    """What lies under a key or index, None where nothing does."""
    if isinstance(node, list):
        return node[int(key)] if key.isdigit() and int(key) < len(node) else None
    return node.get(key) if isinstance(node, dict) else None


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, (list, tuple)) else value


def _set(node: Any, keys: list[str], value: Any, path: str) -> None:
    key: Any = keys[0]
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise SpecError(f"{path}: {key!r} is no index of a list of {len(node)}")
        key = int(key)
    elif not isinstance(node, dict):
        raise SpecError(f"{path}: {key!r} lies below a plain value ({node!r})")
    elif len(keys) > 1 and key not in node:
        raise SpecError(f"{path}: no key {key!r}{nearest(key, list(node))}; there are {', '.join(map(str, node))}")
    if len(keys) > 1:
        _set(node[key], keys[1:], value, path)
        return
    old = node[key] if isinstance(node, list) else node.get(key)
    same_type = (
        isinstance(value, Mapping) and isinstance(old, dict) and value.get("type", old.get("type")) == old.get("type")
    )
    if same_type:
        for k, v in value.items():
            _set(old, [k], v, f"{path}.{k}")
    else:
        node[key] = _copy(value)


def read_yaml(path: str | Path) -> Plain:
    """A YAML or JSON file as a plain mapping. Raises SpecError naming the file and the line."""
    import yaml

    path = Path(path)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path}: expected a mapping at the top, got {type(value).__name__}")
    return value
