"""What a comparison's YAML holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.claims.budget import Budget
from zoo.registry import nearest
from zoo.spec import Plain, SpecError, parse, read_yaml


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """One system of a comparison; a name alone stands for {spec: NAME}.

    spec       an entry's name, an entry's or description's YAML file, or the description itself
    name       its row in the table; the entry's or file's name where left out
    overrides  values of the description to exchange, by dotted path
    solve      keys whose values are solved for; null for those of the comparison, [] to leave the system as it is
    active_k   routed experts that a token of this system uses, where the router's own count, at even scores, is known
               to be another (top-p); null for the router's count
    """

    spec: str | dict[str, Any]
    name: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    solve: tuple[str, ...] | None = None
    active_k: float | None = None

    def __post_init__(self) -> None:
        if self.active_k is not None and self.active_k <= 0:
            raise ValueError(f"active_k: got {self.active_k}, expected more than 0")
        if self.name is None and not isinstance(self.spec, str):
            raise ValueError("name: missing; a system described in place needs one")
        if not re.fullmatch(r"\w[\w.+-]*", self.title):
            raise ValueError(f"name: got {self.title!r}, expected letters, digits and any of '.+-_'")

    @property
    def title(self) -> str:
        """Its name in tables and files."""
        if self.name is not None:
            return self.name
        return Path(str(self.spec)).stem if str(self.spec).endswith((".yaml", ".yml", ".json")) else str(self.spec)


@dataclass(frozen=True, kw_only=True)
class CompareSpec:
    """A comparison.

    systems    the rows of the table, in order
    reference  the system whose active operations the others meet and whose loss theirs is compared with
    output     folder of the results
    train      how every system is trained and measured
    solve      keys whose values are solved for, as ends of dotted paths ("experts.hidden"); all that are found in a
               system are scaled alike
    tolerance  how far active operations may lie from the reference's, relative
    seeds      seeds 0, 1, ... of each system
    workers    processes, one thread each
    """

    systems: tuple[SystemSpec, ...]
    reference: str
    output: str
    train: Budget = field(default_factory=Budget)
    solve: tuple[str, ...] = ("experts.hidden", "ffn.hidden")
    tolerance: float = 0.02
    seeds: int = 1
    workers: int = 1

    def __post_init__(self) -> None:
        names = [system.title for system in self.systems]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"systems[{i}].name: {name!r} is taken by an earlier system; give one of them a name")
        if self.reference not in names:
            raise ValueError(f"reference: no system {self.reference!r}{nearest(self.reference, names)}")
        for key in ("seeds", "workers"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: got {getattr(self, key)}, expected 1 or more")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance: got {self.tolerance}, expected more than 0 and less than 1")


def read(path: str | Path, **changes: Any) -> CompareSpec:
    """A comparison's YAML, with those of `changes` that are not None in place of its own values.

    Raises SpecError naming file and key, or FileNotFoundError.
    """
    plain: Plain = {**read_yaml(path), **{key: value for key, value in changes.items() if value is not None}}
    systems = plain.get("systems")
    if isinstance(systems, (list, tuple)):
        plain["systems"] = [system if isinstance(system, Mapping) else {"spec": system} for system in systems]
    try:
        return parse(CompareSpec, plain)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
