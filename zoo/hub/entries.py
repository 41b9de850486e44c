"""Entries: one YAML file per model, with its description, its card and its claims.

An entry file has the keys `spec` (what `zoo.create` builds), `card`, `claims` and, where weights can be had, `weights`:
a folder beside the file or `hf:org/name@revision`. Nothing here imports torch, so listing is quick.
"""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from zoo.hub.card import Card, CardFields, described_modalities, described_parts, parts_of
from zoo.hub.claim import Claim
from zoo.spec import Plain, SpecError, parse, read_yaml

SUFFIXES = (".yaml", ".yml", ".json")


class EntryError(LookupError):
    """A name behind which there is no entry; the message is one line with the near miss."""


@dataclass(frozen=True, kw_only=True)
class EntryFile:
    """What stands in an entry's YAML.

    spec      the model's plain description
    card      what is known of it
    claims    what it promises
    weights   a folder beside the file, or hf:org/name@revision
    """

    spec: dict[str, Any]
    card: CardFields = field(default_factory=CardFields)
    claims: tuple[Claim, ...] = ()
    weights: str | None = None


@dataclass(frozen=True)
class Entry:
    """An entry with its name and the file it was read from."""

    name: str
    path: Path
    content: EntryFile

    @property
    def spec(self) -> Plain:
        """The model's plain description."""
        return self.content.spec

    @property
    def weights(self) -> str | None:
        """Where its weights are: a folder's path, hf:org/name@revision, or None."""
        where = self.content.weights
        return where if where is None or where.startswith("hf:") else str(self.path.parent / where)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Types of its modalities."""
        return described_modalities(self.content.card, self.spec)

    @property
    def routers(self) -> tuple[str, ...]:
        """Types of its routers."""
        return tuple(dict.fromkeys(name for key, name in parts_of(self.spec) if key == "router"))


def configs() -> Path:
    """Where the configurations lie: data of the installed package, or configs/ of the checkout."""
    inside = Path(str(resources.files("zoo"))) / "configs"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def config_file(path: str | os.PathLike[str]) -> Path:
    """A configuration by its path. One below configs/ that is not there is the package's own of that name."""
    given = Path(path)
    if given.parts[:1] != ("configs",) or given.exists():
        return given
    own = configs().joinpath(*given.parts[1:])
    return own if own.is_file() else given


def folder() -> Path:
    """Where the entries lie."""
    return configs() / "zoo"


@functools.cache
def _files(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(root.glob("*.yaml"))}


def read_entry(path: Path) -> Entry:
    """An entry file. Raises SpecError naming the file and the key where it is not one."""
    try:
        return Entry(path.stem, path, parse(EntryFile, read_yaml(path)))
    except SpecError as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path}: "
        raise SpecError(prefix + str(error)) from error


def find_entry(name: str) -> Entry:
    """The entry of this name. Raises EntryError with the near miss."""
    files = _files(folder())
    if name not in files:
        from zoo.registry import nearest

        raise EntryError(f"no entry {name!r}{nearest(name, list(files))}; `zoo list` shows them all")
    return read_entry(files[name])


def has_entry(name: str) -> bool:
    """Whether there is an entry of this name."""
    return name in _files(folder())


def list_entries(
    pattern: str = "*", *, modality: str | None = None, pretrained: bool | None = None, router: str | None = None
) -> list[str]:
    """Names of the entries that match a shell pattern and, where given, have this modality type, have weights
    (`pretrained`), and have a router of this type."""
    names = fnmatch.filter(_files(folder()), pattern)
    if modality is None and pretrained is None and router is None:
        return names
    found = []
    for entry in map(find_entry, names):
        if modality is not None and modality not in entry.modalities:
            continue
        if router is not None and router not in entry.routers:
            continue
        if pretrained is not None and pretrained != (entry.weights is not None):
            continue
        found.append(entry.name)
    return found


def is_path(ref: str | os.PathLike[str]) -> bool:
    """Whether a reference is written as a path rather than as a name."""
    text = os.fspath(ref)
    return not isinstance(ref, str) or text.endswith(SUFFIXES) or text.startswith((".", "~")) or os.sep in text


def plain_spec(ref: str | os.PathLike[str] | Mapping[str, Any]) -> Plain:
    """The plain description behind an entry's name, a YAML or JSON file (an entry's or a bare spec's), the folder of a
    saved model, or a mapping that is one already.

    Raises EntryError, FileNotFoundError or SpecError.
    """
    if isinstance(ref, Mapping):
        return dict(ref)
    path = Path(ref).expanduser()
    if not is_path(ref) and has_entry(os.fspath(ref)):
        return find_entry(os.fspath(ref)).spec
    if path.is_dir():
        return read_config(path)["spec"]
    if path.is_file():
        value = read_yaml(path)
        return read_entry(path).spec if "spec" in value else value
    if is_path(ref):
        raise FileNotFoundError(f"{path}: no such file or folder; `zoo list` shows the entries, which have no path")
    return find_entry(os.fspath(ref)).spec


def read_config(path: Path) -> Plain:
    """config.json of a saved model. Raises FileNotFoundError, or SpecError naming what was found in its place."""
    from zoo.hub.config import read

    return read(path / "config.json")


def card(ref: str | os.PathLike[str]) -> Card:
    """The card of an entry, or of a saved model's folder: system, paper, parts, parameters, FLOPs per token, licence,
    claims and measured results.

    Raises EntryError with the near miss, or SpecError where the description cannot be built.
    """
    if is_path(ref) or (not has_entry(os.fspath(ref)) and Path(ref).is_dir()):
        path = Path(ref).expanduser()
        if path.is_file():
            entry = read_entry(path)
            return describe(entry.name, entry.content, entry.weights is not None)
        config = read_config(path)
        content = EntryFile(spec=config["spec"], card=parse(CardFields, config.get("card", {}), f"{path}: card"))
        return describe(path.resolve().name, content, pretrained=True)
    entry = find_entry(os.fspath(ref))
    return describe(entry.name, entry.content, entry.weights is not None)


def describe(name: str, content: EntryFile, pretrained: bool) -> Card:
    """A card with what the spec costs."""
    from zoo.models.unified import ModelSpec

    cost = parse(ModelSpec, content.spec, "spec").cost()
    return Card(
        name=name,
        fields=content.card,
        claims=content.claims,
        modalities=described_modalities(content.card, content.spec),
        parts=described_parts(content.card, content.spec),
        total=cost.total,
        active=cost.active,
        flops=cost.flops,
        pretrained=pretrained,
    )
