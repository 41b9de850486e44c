"""gpt-oss: sinks, windows in every other layer, biases everywhere and clamped experts (arXiv 2508.10925)."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.pieces import WHOLE, Piece
from zoo.hub.conversion.rotary import Rotary, rotary
from zoo.spec import Plain

# What transformers takes where config.json says nothing of positions.
YARN = {"type": "yarn", "factor": 32.0, "context": 4096, "truncate": False}


def spec(fields: Fields) -> Language:
    """Windows stand in the even layers unless `layer_types` says."""
    depth, bias = fields.count(), fields.get("attention_bias", bool, True)
    attention = read.grouped(fields, bias=bias, out_bias=bias, kv_heads=8, head_dim=64) | {"sinks": True}
    types = read.layer_types(fields, depth) or [read.WINDOWED if i % 2 == 0 else "full_attention" for i in range(depth)]
    size = fields.optional("sliding_window", int, 128)
    k = fields.get(("num_experts_per_tok", "experts_per_token"), int, 4)
    layer = read.moe(
        experts(fields),
        fields.get(("num_local_experts", "num_experts"), int, 128),
        read.chosen(k, gate={"bias": True}),
    )
    windows = [size if kind == read.WINDOWED else None for kind in types]
    blocks = [read.sequential({**attention, "window": window}, layer) for window in windows]
    return read.language(fields, blocks, eps=1e-5, positions=positions(fields))


def experts(fields: Fields) -> Plain:
    """gate sigmoid(alpha gate) (up + 1), both clamped."""
    plain = read.swiglu(fields) | {"bias": True, "offset": 1.0}
    plain["alpha"] = fields.get("swiglu_alpha", float, 1.702)
    plain["limit"] = fields.get("swiglu_limit", float, 7.0)
    return plain


def positions(fields: Fields) -> Rotary:
    """Theta 150000, stretched by yarn unless there is another form. `initial_context_length` repeats the length that
    yarn starts from."""
    silent = not (fields.raw("rope_scaling") or fields.raw("rope_parameters"))
    found = rotary(fields, theta=150000.0)
    rope = {**found.rope, "scaling": dict(YARN)} if silent else found.rope
    trained = fields.get("initial_context_length", int, None)
    start = rope.get("scaling", {}).get("context")
    if trained is not None and start is not None and trained != start:
        raise fields.error("initial_context_length", f"got {trained}, the positions are stretched from {start}")
    return Rotary(rope, found.partial)


def config(model: Language) -> Plain:
    """The fields of gpt-oss."""
    attention, layer = write.attention(model), write.mixture(model)
    network = of_type(layer["experts"], "ffn.experts", "swiglu")
    router = of_type(layer["router"], "ffn.router", "top_k")
    if not attention["sinks"]:
        raise MismatchError("attention.sinks: is false, expected true")
    windows = write.write_windows(model)
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        "layer_types": windows["layer_types"],
        "sliding_window": windows["sliding_window"],
        "attention_bias": attention["bias"],
        "hidden_act": "silu",
        "intermediate_size": network["hidden"],
        "swiglu_alpha": network["alpha"],
        "swiglu_limit": network["limit"],
        "num_local_experts": layer["routed"],
        "num_experts_per_tok": router["k"],
    }


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """Experts are stacked, inputs before outputs, with gate and up in turns."""
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        yield from rules.pre_norms(theirs, ours, model)
        yield from rules.grouped(f"{theirs}.self_attn", f"{ours}.attention", block["attention"])
        yield Piece(f"{theirs}.mlp.router.weight", f"{ours}.ffn.router.gate.weight")
        yield Piece(f"{theirs}.mlp.router.bias", f"{ours}.ffn.router.gate.bias")
        yield from in_turns(f"{theirs}.mlp.experts", f"{ours}.ffn.experts", block["ffn"], model.dim)


def in_turns(theirs: str, ours: str, layer: Plain, dim: int) -> Iterator[Piece]:
    """gate_up_proj [E, D, 2F], gate in the even columns; ours is [E, 2F, D], gate first."""
    count, hidden = layer["routed"], layer["experts"]["hidden"]
    halves = WHOLE.unflatten(1, 2, hidden)  # [E, 2, F, D] or [E, 2, F]
    yield Piece(f"{theirs}.gate_up_proj", f"{ours}.gate_up", halves.swap(1, 3), shape=(count, dim, 2 * hidden))
    yield Piece(f"{theirs}.gate_up_proj_bias", f"{ours}.gate_up_bias", halves.swap(1, 2), shape=(count, 2 * hidden))
    yield Piece(f"{theirs}.down_proj", f"{ours}.down", WHOLE.swap(1, 2))
    yield Piece(f"{theirs}.down_proj_bias", f"{ours}.down_bias")


FAMILY = Family(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    quantised=("mxfp4",),
)
