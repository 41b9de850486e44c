"""A language model small enough to train within a test, and an entry of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from zoo.hub.entries import Entry, read_entry

FFN = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": {"type": "top_k", "k": 2}}
TRAIN = {"steps": 3, "rows": 2, "held_out": 4, "points": 3, "data": [{"type": "docstrings"}]}


def tiny_lm(**ffn: Any) -> dict[str, Any]:
    """Two layers of width 16 over rows of 32 bytes; `ffn` is laid over its MoE layers."""
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": {**FFN, **ffn}}
    return {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {"text": {"type": "text", "length": 32}},
    }


@pytest.fixture(scope="session")
def language() -> Callable[..., dict[str, Any]]:
    """`tiny_lm`."""
    return tiny_lm


@pytest.fixture(scope="session")
def budget() -> dict[str, Any]:
    """Three steps."""
    return dict(TRAIN)


@pytest.fixture
def entry(tmp_path: Path) -> Callable[..., Entry]:
    """Writes an entry of `tiny_lm` with these claims and reads it."""

    def write(*claims: dict[str, Any], **ffn: Any) -> Entry:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({"spec": tiny_lm(**ffn), "claims": list(claims)}, sort_keys=False))
        return read_entry(path)

    return write
