"""Ling-Lite by its description (arXiv 2503.05139): the counts of the released configuration, and the entry's parts."""

from __future__ import annotations

from zoo.hub.entries import plain_spec
from zoo.models.unified import ModelSpec, UnifiedSpec
from zoo.moe.spec import MoESpec
from zoo.spec import parse

VOCAB, DIM = 126464, 2048
BLOCK = {
    "type": "sequential",
    "attention": {"heads": 16, "kv_heads": 4},
    "ffn": {
        "type": "moe",
        "routed": 64,
        "experts": {"type": "swiglu", "hidden": 1408},
        "shared": {"count": 2, "hidden": 1408},
        "router": {"type": "top_k", "k": 6},
    },
}
LITE = {
    "type": "unified",
    "backbone": {"dim": DIM, "layers": [{"repeat": 28, "block": BLOCK}]},
    "modalities": {"text": {"type": "text", "vocab": VOCAB, "tie": False, "head_norm": "columns"}},
}


def test_the_counts_of_ling_lite() -> None:
    """16.8 and 2.75 billion; active parameters of the description leave embedding and head out."""
    cost = parse(ModelSpec, LITE).cost()
    assert cost.total == 16_801_974_272
    assert cost.active + 2 * VOCAB * DIM == 2_753_153_024


def test_the_entry_has_its_number_of_experts_and_both_losses() -> None:
    spec = parse(ModelSpec, plain_spec("ling"))
    assert isinstance(spec, UnifiedSpec)
    (layers,) = spec.backbone.layers
    ffn = layers.block.ffn  # type: ignore[attr-defined]
    assert isinstance(ffn, MoESpec) and ffn.shared is not None
    assert (ffn.routed, ffn.router.mean_k(ffn.pool), ffn.shared.count) == (64, 6, 2)
    assert [balance.weight for balance in ffn.balance] == [0.015, 1e-4]
