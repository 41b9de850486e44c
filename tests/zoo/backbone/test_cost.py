"""What a spec says it costs, against the built model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modalities.base import Tokens
from zoo.backbone.attention import AttentionSpec
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.moe.layer import MoE
from zoo.moe.spec import MoESpec
from zoo.spec import parse

SWIGLU = {"type": "swiglu", "hidden": 8}
LAYERS: dict[str, dict[str, Any]] = {
    "dense": {"type": "dense", "hidden": 24},
    "plain": {"type": "moe", "routed": 4, "experts": SWIGLU, "router": {"type": "top_k", "k": 2}},
    "gelu": {"type": "moe", "routed": 3, "experts": {"type": "gelu", "hidden": 9, "bias": True},
             "router": {"type": "top_k", "k": 2, "bias": True}},
    "null": {"type": "moe", "routed": 4, "experts": SWIGLU, "router": {"type": "top_k", "k": 2},
             "null_experts": {"zero": 1, "copy": 1, "constant": 2}},
    "shared": {"type": "moe", "routed": 4, "experts": SWIGLU, "router": {"type": "top_k", "k": 3},
               "shared": {"count": 2, "hidden": 6, "gate": "sigmoid"}},
    "unimoe": {"type": "moe", "routed": 8, "experts": SWIGLU, "router": {"type": "top_p", "p": 0.7},
               "null_experts": {"zero": 1}, "shared": {"count": 2, "hidden": 4, "gate": "router"}},
}  # fmt: skip
ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {"heads": 4},
    "grouped": {"heads": 4, "kv_heads": 2, "head_dim": 6, "qk_norm": True, "bias": True, "out_bias": True},
}
KINDS: dict[str, dict[str, Any]] = {
    **ATTENTION,
    "norm over all": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_norm_over": "all"},
    "sinks": {"heads": 4, "kv_heads": 2, "head_dim": 6, "sinks": True, "window": 3},
    "latent": {"type": "latent", "heads": 4, "kv_rank": 6, "nope_dim": 3, "rope_dim": 2, "value_dim": 5},
    "latent queries": {"type": "latent", "heads": 4, "kv_rank": 6, "nope_dim": 3, "rope_dim": 2, "value_dim": 5,
                       "q_rank": 7, "bias": True},
}  # fmt: skip


def spec(ffn: str, attention: dict[str, Any], type: str = "sequential") -> BackboneSpec:
    block = {"type": type, "attention": attention, "ffn": LAYERS[ffn]}
    dense = {"type": "sequential", "attention": attention, "ffn": LAYERS["dense"]}
    layers = [{"repeat": 2, "block": block}, {"block": dense}]
    return parse(BackboneSpec, {"dim": 16, "cond": 3 if type == "adaln" else 0, "layers": layers})


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("type", ["sequential", "adaln"])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("ffn", LAYERS)
def test_parameters_equal_those_of_the_built_trunk(ffn: str, attention: str, type: str) -> None:
    described = spec(ffn, ATTENTION[attention], type)
    assert described.cost().total == count(described.build())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_attention_knows_its_parameters(kind: str) -> None:
    attention = parse(AttentionSpec, KINDS[kind])
    cost = attention.cost(16, 100)
    assert cost.total == cost.active == count(attention.build(16, 0, 1e-6))


def test_operations_of_attention() -> None:
    """2 per multiply-add: maps, and products with `length` keys and values; a window bounds these."""
    cost = {kind: parse(AttentionSpec, KINDS[kind]).cost for kind in KINDS}
    assert cost["plain"](16, 10).flops == 2 * 4 * 16 * 16 + 4 * 16 * 10
    assert cost["sinks"](16, 10).flops - cost["sinks"](16, 0).flops == 4 * 24 * 3
    maps = 16 * 4 * 5 + 16 * (6 + 2) + 6 * 4 * (3 + 5) + 4 * 5 * 16
    assert cost["latent"](16, 10).flops == 2 * maps + 2 * 4 * (5 + 5) * 10


def used_per_token(trunk: Backbone, k: float) -> float:
    """Active parameters counted on the model: all but what routed experts a token does not use, at even load."""
    total = float(count(trunk))
    for layer in trunk.moe_layers():
        one = count(layer.experts) / layer.pool.routed
        total -= count(layer.experts) - one * k * layer.pool.routed / layer.pool.experts
    return total


@pytest.mark.parametrize(("ffn", "k"), [("plain", 2), ("gelu", 2), ("null", 2), ("shared", 3), ("unimoe", 7)])
def test_active_parameters(ffn: str, k: float) -> None:
    described = spec(ffn, ATTENTION["plain"])
    assert described.cost().active == pytest.approx(used_per_token(described.build(), k))


def test_active_equals_total_without_experts() -> None:
    cost = spec("dense", ATTENTION["grouped"]).cost()
    assert cost.active == cost.total


@pytest.mark.parametrize("ffn", ["dense", "plain", "gelu", "shared"])
def test_operations_equal_those_counted_while_running(ffn: str) -> None:
    """Token count times the stated figure, over S tokens that all see S keys (SDPA computes masked ones as well)."""
    described = spec(ffn, ATTENTION["plain"])
    trunk, length = described.build(), 12
    for layer in trunk.moe_layers():  # the counter knows torch's own products alone
        layer.spec = parse(MoESpec, LAYERS[ffn] | {"backend": "reference"})
        layer.experts = layer.spec.experts.build(16, layer.spec.routed, "reference")
    everyone = torch.ones(1, length, dtype=torch.bool)
    tokens = Tokens(embedding=torch.randn(1, length, 16), span=everyone.long(), bidirectional=everyone)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        trunk(tokens)
    assert counter.get_total_flops() == pytest.approx(length * described.cost(length).flops, rel=1e-9)


def test_the_layer_of_unimoe_audio_at_its_published_size() -> None:
    """Sheet: 8 routed of 16.908 M, 2 shared of 8.454 M, a gate of 11 columns, at width 2048."""
    described = parse(
        MoESpec,
        {
            "routed": 8, "experts": {"type": "swiglu", "hidden": 2752}, "router": {"type": "top_p", "p": 0.7},
            "null_experts": {"zero": 1}, "shared": {"count": 2, "hidden": 1376, "gate": "router"},
        },
    )  # fmt: skip
    cost = described.cost(2048)
    assert described.experts.cost(2048).total == 16_908_288
    assert cost.total == 8 * 16_908_288 + 2 * 8_454_144 + 11 * 2048
    assert cost.active < cost.total
    with torch.device("meta"):
        assert count(MoE(described, 2048)) == cost.total
