"""Small models that tests of the zoo share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.models.unified import Unified


def plain_text_model(**modalities: Any) -> dict[str, Any]:
    """A two-layer model of width 16 over bytes, further modalities beside text."""
    ffn = {
        "type": "moe", "routed": 4, "null_experts": {"zero": 1}, "experts": {"type": "swiglu", "hidden": 8},
        "router": {"type": "top_k", "k": 2}, "shared": {"count": 1, "hidden": 8},
    }  # fmt: skip
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    return {
        "type": "unified",
        "backbone": {"dim": 16, "rope": {"axes": 2}, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {"text": {"type": "text", "length": 32}} | modalities,
    }


SERIES = {"type": "time_series", "embedding": "patch", "patch": 4, "context": 16, "heads": [2, 8]}


@pytest.fixture
def plain() -> dict[str, Any]:
    """The description of a model of text and time series."""
    return plain_text_model(series=dict(SERIES))


@pytest.fixture(scope="session")
def model() -> Unified:
    """A model of text and time series; tests leave it as it was."""
    return zoo.create(plain_text_model(series=dict(SERIES)), seed=1).eval()


@pytest.fixture(scope="session")
def saved(model: Unified, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, saved; tests leave the folder as it was."""
    return zoo.save(model, tmp_path_factory.mktemp("saved") / "small")
