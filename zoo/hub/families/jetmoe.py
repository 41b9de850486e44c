"""JetMoE: routed query and output maps over shared keys and values, then routed experts (arXiv 2404.07413)."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.pieces import WHOLE, Piece
from zoo.spec import Plain

EPS = 1e-6  # of the blocks' norms, whatever config.json says: its field is that of the final norm


def spec(fields: Fields) -> Language:
    """As many experts in attention as in the feed-forward layer, and as many chosen. The publisher's own code spelt
    numbers and width of experts otherwise."""
    for name in ("activation_function", "hidden_act"):
        fields.only(name, "silu", "swish")
    fields.only("rotary_percent", 1, 1.0)
    for name in ("bias", "glu"):
        fields.only(name, True)
    routed = fields.get(("num_local_experts", "moe_num_experts"), int, 8)
    k = fields.get(("num_experts_per_tok", "moe_top_k"), int, 2)
    heads = fields.get("num_key_value_heads", int, 16)
    fields.only("num_attention_heads", heads * k)
    attention = {
        "routed": routed,
        "router": read.chosen(k),
        "heads": heads,
        "head_dim": fields.get(("kv_channels", "head_dim"), int, 128),
        "out_bias": True,
    }
    experts = {"type": "swiglu", "hidden": fields.get(("intermediate_size", "ffn_hidden_size"), int, 5632)}
    layer = {**read.moe(experts, routed, read.chosen(k)), "out_bias": True}
    block = {"type": "attention_experts", "attention": attention, "ffn": layer}
    final = fields.get("rms_norm_eps", float, EPS)
    trunk = {"norm_eps": EPS, "final_eps": None if final == EPS else final}
    return read.language(fields, [block] * fields.count(), tie=True, ids=(1, 2, None), trunk=trunk)


def config(model: Language) -> Plain:
    """The fields of JetMoE."""
    block = model.same("block", lambda block: of_type(block, "block", "attention_experts"))
    attention, layer = block["attention"], of_type(block["ffn"], "ffn", "moe")
    k = of_type(layer["router"], "ffn.router", "top_k")["k"]
    if attention["routed"] != layer["routed"]:
        raise MismatchError(f"attention.routed: is {attention['routed']}, expected {layer['routed']} as in ffn")
    final = model.trunk["final_eps"]
    return {
        **write.write_language(model),
        "rms_norm_eps": model.trunk["norm_eps"] if final is None else final,
        "num_key_value_heads": attention["heads"],
        "num_attention_heads": attention["heads"] * k,
        "kv_channels": head_dim(attention, model.dim),
        "activation_function": "silu",
        "intermediate_size": of_type(layer["experts"], "ffn.experts", "swiglu")["hidden"],
        "num_local_experts": layer["routed"],
        "num_experts_per_tok": k,
    }


def head_dim(attention: Plain, dim: int) -> int:
    """The size of a head in a trunk of width `dim`."""
    return int(dim // attention["heads"] if attention["head_dim"] is None else attention["head_dim"])


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """Maps of experts are stacked; keys and values are one tensor, keys first."""
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        yield from rules.pre_norms(theirs, ours, model)
        inner = block["attention"]["heads"] * head_dim(block["attention"], model.dim)
        yield from keys(f"{theirs}.self_attention.kv_proj.weight", f"{ours}.attention", inner, model.dim)
        yield from mixture(f"{theirs}.self_attention.experts", f"{ours}.attention", ("q", "o"))
        yield from mixture(f"{theirs}.mlp", f"{ours}.ffn", ("gate_up", "down"))


def keys(theirs: str, ours: str, inner: int, dim: int) -> Iterator[Piece]:
    """The maps of keys and values."""
    for i, name in enumerate("kv"):
        part = WHOLE.rows(i * inner, (i + 1) * inner)
        yield Piece(theirs, f"{ours}.{name}.weight", shape=(2 * inner, dim), part=part)


def mixture(theirs: str, ours: str, names: tuple[str, str]) -> Iterator[Piece]:
    """A router, the maps into and out of its experts, and the bias of their sum."""
    into, out_of = names
    yield Piece(f"{theirs}.router.layer.weight", f"{ours}.router.gate.weight")
    yield Piece(f"{theirs}.input_linear.weight", f"{ours}.experts.{into}")
    yield Piece(f"{theirs}.output_linear.weight", f"{ours}.experts.{out_of}")
    yield Piece(f"{theirs}.bias", f"{ours}.out_bias")


FAMILY = Family(
    name="jetmoe",
    architecture="JetMoeForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    harmless=frozenset({"aux_loss_coef"}),  # of training
)
