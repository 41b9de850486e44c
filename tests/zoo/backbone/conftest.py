"""Small trunks and tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modalities.base import Tokens
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.spec import Plain, override, parse

DENSE: Plain = {"type": "dense", "hidden": 24}
MOE: Plain = {
    "type": "moe",
    "routed": 4,
    "experts": {"type": "swiglu", "hidden": 8},
    "router": {"type": "top_k", "k": 2},
    "null_experts": {"zero": 1, "copy": 1, "constant": 1},
    "shared": {"count": 2, "hidden": 6, "gate": "router"},
}


def block(ffn: Plain = DENSE, type: str = "sequential", **attention: Any) -> Plain:
    return {"type": type, "attention": {"heads": 4, **attention}, "ffn": ffn}


@pytest.fixture
def trunk() -> Callable[..., Backbone]:
    """trunk(*blocks, seed=0, **changes): a trunk of width 16 in float64, every parameter drawn."""

    def build(*blocks: Plain, seed: int = 0, drawn: bool = True, **changes: Any) -> Backbone:
        layers = [{"block": b} for b in blocks or (block(), block(MOE))]
        torch.manual_seed(seed)
        built = parse(BackboneSpec, override({"dim": 16, "layers": layers}, changes)).build().double()
        if drawn:
            with torch.no_grad():
                for parameter in built.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return built.eval()

    return build


@pytest.fixture
def tokens() -> Callable[..., Tokens]:
    """tokens(rows, length, **fields): random embeddings of width 16."""

    def build(rows: int = 2, length: int = 6, **fields: Any) -> Tokens:
        generator = torch.Generator().manual_seed(rows * 100 + length)
        return Tokens(embedding=torch.randn(rows, length, 16, generator=generator, dtype=torch.float64), **fields)

    return build
