"""Ernie 4.5: a selection bias over softmax scores, shared experts in one network, dense layers by index, adjacent
rotary pairs (ERNIE 4.5 technical report, 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.pieces import WHOLE, Piece
from zoo.hub.conversion.rotary import rotary
from zoo.hub.conversion.surplus import PREDICTORS
from zoo.spec import Plain

LEAST = 1e-12  # their floor under the sum of chosen scores


def spec(fields: Fields) -> Language:
    """`use_bias` gives biases to attention, dense and shared networks and the head, but not to routed experts."""
    fields.only("moe_gate", "topk")
    for name, value in (("use_rmsnorm", True), ("moe_use_aux_free", True), ("is_quantized", False)):
        fields.only(name, value)
    depth, bias = fields.count(), fields.get("use_bias", bool, False)
    attention, dense = (
        read.grouped(fields, bias=bias, out_bias=bias, kv_heads=4),
        read.dense(fields, bias=bias, default=12288),
    )
    layer = mixture(fields, bias)
    blocks = [read.sequential(attention, layer if has else dense) for has in sparse(fields, depth)]
    found = rotary(fields, theta=500000.0)
    positions = replace(found, rope={**found.rope, "pairs": "adjacent"})
    text = {"head_bias": True} if bias else {}
    return read.language(fields, blocks, eps=1e-5, tie=True, ids=(1, 2, 0), positions=positions, text=text)


def mixture(fields: Fields, bias: bool) -> Plain:
    """The layer with experts. Shared experts that have a bias have one for all of them, so they are one."""
    if fields.get("moe_norm_min", float, LEAST) > 1e-9:
        raise fields.error("moe_norm_min", f"got {fields.raw('moe_norm_min')}, supported is a floor of 1e-9 at most")
    hidden = fields.get("moe_intermediate_size", int, 1536)
    count = fields.get("moe_num_shared_experts", int, 2)
    shared: Plain | None = {"count": count, "hidden": hidden} if count else None
    if shared is not None and bias:
        shared = {"count": 1, "hidden": count * hidden, "bias": True}
    fields.only("hidden_act", "silu", "swish")
    router = read.chosen(fields.get(("moe_k", "num_experts_per_tok"), int, 6), bias=True)
    routed = fields.get(("moe_num_experts", "num_experts"), int, 64)
    return read.moe({"type": "swiglu", "hidden": hidden}, routed, router, shared)


def sparse(fields: Fields, depth: int) -> list[bool]:
    """Whether each layer has experts: those from start to end whose number divides by the interval."""
    start, step = fields.get("moe_layer_start_index", int, 1), fields.get("moe_layer_interval", int, 1)
    end = fields.get("moe_layer_end_index", int, -1)
    if step < 1:
        raise fields.error("moe_layer_interval", f"got {step}, expected 1 or more")
    last = depth - 1 if end == -1 else end
    return [start <= i <= last and (i + 1) % step == 0 for i in range(depth)]


def config(model: Language) -> Plain:
    """The fields of Ernie 4.5."""
    layer, attention = write.mixture(model), write.attention(model)
    if model.trunk["rope"]["pairs"] != "adjacent":
        raise MismatchError("backbone.rope.pairs: is halves, expected adjacent")
    hidden = of_type(layer["experts"], "ffn.experts", "swiglu")["hidden"]
    each = [i for i, block in enumerate(model.blocks) if block["ffn"]["type"] == "moe"]
    dense = {block["ffn"]["hidden"] for block in model.blocks if block["ffn"]["type"] == "dense"}
    if len(dense) > 1:
        raise MismatchError(f"ffn.hidden: dense layers have widths {sorted(dense)}; expected one")
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        **({"intermediate_size": dense.pop()} if dense else {}),
        "use_bias": attention["bias"],
        "hidden_act": "silu",
        "moe_intermediate_size": hidden,
        "moe_num_experts": layer["routed"],
        "moe_k": of_type(layer["router"], "ffn.router", "top_k")["k"],
        "moe_num_shared_experts": shared_count(layer["shared"], hidden),
        "moe_layer_start_index": each[0],
        "moe_layer_end_index": each[-1],
        "moe_layer_interval": each[1] - each[0] if len(each) > 1 else 1,
        "moe_norm_min": LEAST,
        PREDICTORS: 0,
    }


def shared_count(shared: Mapping[str, Any] | None, hidden: int) -> int:
    """How many networks of a routed expert's width the shared ones are."""
    width = 0 if shared is None else shared["count"] * shared["hidden"]
    if width % hidden:
        raise MismatchError(f"ffn.shared.hidden: {width} in all, expected a multiple of the routed experts' {hidden}")
    return int(width // hidden)


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """On the hub the selection bias stands beside the gate, in transformers 5 inside it."""
    return rules.decoder(model, partial(experts, layout))


def experts(layout: str, theirs: str, ours: str, ffn: Plain) -> Iterator[Piece]:
    """Router and experts."""
    statics = "gate.moe_statics" if layout == FUSED else "moe_statics"
    routed, hidden = ffn["routed"], ffn["experts"]["hidden"]
    yield Piece(f"{theirs}.mlp.gate.weight", f"{ours}.router.gate.weight")
    yield Piece(f"{theirs}.mlp.{statics}.e_score_correction_bias", f"{ours}.router.bias", shape=(1, routed))
    yield from rules.experts(f"{theirs}.mlp.experts", f"{ours}.experts", routed, hidden, layout)
    if ffn["shared"] is not None:
        yield from shared(f"{theirs}.mlp.shared_experts", f"{ours}.shared_experts", ffn["shared"])


def shared(theirs: str, ours: str, spec: Mapping[str, Any]) -> Iterator[Piece]:
    """Shared experts as one network."""
    width = spec["count"] * spec["hidden"]
    yield from rules.glu(theirs, ours, width)
    if spec["bias"]:
        yield Piece(f"{theirs}.gate_proj.bias", f"{ours}.gate_up_bias", WHOLE.rows(0, width))
        yield Piece(f"{theirs}.up_proj.bias", f"{ours}.gate_up_bias", WHOLE.rows(width, 2 * width))
        yield Piece(f"{theirs}.down_proj.bias", f"{ours}.down_bias", WHOLE.index(0))


FAMILY = Family(
    name="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    layouts=(SEPARATE, FUSED),
    # a capacity of training, and blocks that predict further tokens, which are left unread
    harmless=frozenset({"moe_capacity", PREDICTORS}),
    ignored=(r"(model\.)?mtp.*",),
)
