"""config.json: the plain description a saved model carries, with the version of its layout, or that of a public
checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo.models.origin import Origin
from zoo.spec import Plain, SpecError, dump

FORMAT, VERSION = "moezoo", 1
KEYS = {"format", "version", "spec", "card", "source"}
REMOTE = ("auto_map", "custom_pipelines")  # keys by which other libraries name code to download and run


def write(path: Path, spec: Plain, card: Plain, origin: Origin | None = None) -> None:
    """Writes spec and card, and what is remembered of a public checkpoint; equal input gives equal bytes."""
    content: Plain = {"format": FORMAT, "version": VERSION, "spec": spec, "card": card}
    if origin is not None and origin.family is not None:
        content["source"] = {"family": origin.family, "fields": dict(origin.fields)}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_foreign(content: Plain) -> bool:
    """Whether a config.json is that of a public checkpoint rather than ours."""
    return content.get("format") != FORMAT and isinstance(content.get("model_type"), str)


def read(path: Path) -> Plain:
    """The content of a config.json, its format checked and its spec a mapping. That of a public checkpoint is turned
    into ours.

    Raises FileNotFoundError, or SpecError saying what was found where it is neither.
    """
    found = content(path)
    if is_foreign(found):
        from zoo.hub.conversion.checkpoint import describe

        _, spec = describe(found, path)
        return {"format": FORMAT, "version": VERSION, "spec": dump(spec), "card": {}}
    _check(path, found)
    return found


def content(path: Path, *, ignore_remote_code: bool = False) -> Plain:
    """A config.json as it stands there; ignore_remote_code leaves out the keys of a public checkpoint that name code.

    Raises FileNotFoundError, or SpecError where it is no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent}: holds no config.json; expected a saved model or a public checkpoint")
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(found, dict):
        raise SpecError(f"{path}: expected a mapping at the top, got {type(found).__name__}")
    if ignore_remote_code and is_foreign(found):
        return {key: value for key, value in found.items() if key not in REMOTE}
    return found


def _check(path: Path, content: Plain) -> None:
    named = [key for key in REMOTE if key in content]
    if named:
        raise SpecError(f"{path}: {named[0]!r} names code to run; code that comes with a checkpoint is never run")
    if content.get("format") != FORMAT:
        found = content.get("model_type") or content.get("_class_name") or content.get("format")
        what = f"of {found!r}" if found else f"with the keys {', '.join(map(str, list(content)[:6])) or '(none)'}"
        raise SpecError(
            f'{path}: a config {what}; expected "format": "{FORMAT}", as zoo.save writes it, or "model_type"'
        )
    if content.get("version") != VERSION:
        raise SpecError(f"{path}: layout version {content.get('version')!r}, this release reads version {VERSION}")
    unknown = sorted(set(content) - KEYS)
    if unknown:
        raise SpecError(f"{path}: unknown key {unknown[0]!r}; expected {', '.join(sorted(KEYS))}")
    if not isinstance(content.get("spec"), dict):
        raise SpecError(f"{path}: 'spec' is missing or no mapping")
    source = content.get("source", {"family": "", "fields": {}})
    if not (isinstance(source, dict) and set(source) == {"family", "fields"} and isinstance(source["fields"], dict)):
        raise SpecError(f"{path}: 'source' is no mapping of family and fields")
