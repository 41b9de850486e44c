"""What a check found, written into its entry's YAML; everything else in the file, comments included, stays as it is."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.hub.claim import Found
from zoo.spec import SpecError


def record(path: Path, claim: str, found: Found) -> None:
    """Sets the key `found` of a claim, in flow style on one line. The file is written beside and renamed.

    Raises SpecError where the file has no such claim, or where a claim without `found` ends in an alias.
    """
    text = path.read_text(encoding="utf-8")
    node = _claim(path, text, claim)
    line = _flow({key: value for key, value in asdict(found).items() if value != ""})
    old = next((value for key, value in node.value if key.value == "found"), None)
    if old is not None:
        # a block mapping's mark lies behind the white space and comments that follow it; a value's own end does not
        text = text[: old.start_mark.index] + line + text[_end(old) :]
    elif node.flow_style:
        end = node.end_mark.index - 1
        text = text[:end].rstrip(" \n,") + f", found: {line}" + text[end:]
    else:
        end, indent = _end(node), " " * node.start_mark.column
        text = text[:end] + f"\n{indent}found: {line}" + text[end:]
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _claim(path: Path, text: str, name: str) -> Any:
    import yaml

    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, claims in root.value:
        for claim in claims.value if key.value == "claims" else ():
            if any(k.value == "name" and v.value == name for k, v in claim.value):
                return claim
    raise SpecError(f"{path}: claims: no claim {name!r} to record a figure for")


def _end(node: Any) -> int:
    """Where the last scalar or bracket of a node ends. Raises SpecError where that is an alias, which has no place of
    its own: its node stands where the anchor is."""
    if isinstance(node.value, str) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    *others, last = node.value
    before, value = last if isinstance(last, tuple) else (others[-1] if others else node, last)
    if value.start_mark.index < before.start_mark.index:
        raise SpecError(f"line {before.start_mark.line + 1}: a claim ends in an alias; write another key behind it")
    return _end(value)


def _flow(values: dict[str, Any]) -> str:
    """{key: value, ...}; JSON's scalars are YAML's."""
    return "{" + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()) + "}"
