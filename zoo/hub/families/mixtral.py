"""Mixtral: top-k routed SwiGLU experts in every layer, weights normalised over the chosen (arXiv 2401.04088)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, of_type
from zoo.hub.conversion.pieces import Piece
from zoo.hub.conversion.rotary import rotary
from zoo.spec import Plain


def spec(fields: Fields) -> Language:
    """The softmax over all experts, divided by its sum over the chosen."""
    attention = read.grouped(fields, kv_heads=8)
    attention["window"] = fields.optional("sliding_window", int, None)
    router = read.chosen(fields.get("num_experts_per_tok", int, 2))
    routed = fields.get(("num_local_experts", "num_experts"), int, 8)
    block = read.sequential(attention, read.moe(read.swiglu(fields), routed, router))
    positions = rotary(fields, theta=1e6)
    return read.language(fields, [block] * fields.count(), eps=1e-5, ids=(1, 2, None), positions=positions)


def config(model: Language) -> Plain:
    """The fields of Mixtral."""
    layer = write.mixture(model)
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        "sliding_window": write.window(model),
        "hidden_act": "silu",
        "intermediate_size": of_type(layer["experts"], "ffn.experts", "swiglu")["hidden"],
        "num_local_experts": layer["routed"],
        "num_experts_per_tok": of_type(layer["router"], "ffn.router", "top_k")["k"],
    }


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """On the hub the experts' maps are called w1 (gate), w3 (up) and w2 (down)."""
    return rules.decoder(model, partial(mixture, layout))


def mixture(layout: str, theirs: str, ours: str, ffn: Plain) -> Iterator[Piece]:
    """Router and experts."""
    moe = f"{theirs}.mlp" if layout == FUSED else f"{theirs}.block_sparse_moe"
    routed, hidden = ffn["routed"], ffn["experts"]["hidden"]
    yield Piece(f"{moe}.gate.weight", f"{ours}.router.gate.weight")
    yield from rules.experts(f"{moe}.experts", f"{ours}.experts", routed, hidden, layout, ("w1", "w3", "w2"))


FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    layouts=(SEPARATE, FUSED),
    harmless=frozenset({"router_jitter_noise"}),  # noise of training
)
