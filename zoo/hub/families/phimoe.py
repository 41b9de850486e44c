"""Phi-3.5-MoE: two picks of SparseMixer, LayerNorm, a head with a bias, positions with a factor of their own beyond the
trained length (arXiv 2404.14219, 2409.12136)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.pieces import Piece
from zoo.hub.conversion.rotary import rotary
from zoo.spec import Plain

NAMES = ("w1", "w3", "w2")  # of an expert's maps on the hub


def spec(fields: Fields) -> Language:
    """One window for all layers; `router_jitter_noise` is the gap below which experts tie, in use without training
    too."""
    fields.only("num_experts_per_tok", 2)  # the mixer of the peers always picks two
    bias = fields.get("attention_bias", bool, False)
    attention = read.grouped(fields, bias=bias, out_bias=bias, kv_heads=8)
    attention["window"] = fields.get("sliding_window", int, None)
    router = {"type": "sparse_mixer", "k": 2, "near_tie": fields.get("router_jitter_noise", float, 0.01)}
    layer = read.moe(read.swiglu(fields), fields.get("num_local_experts", int, 16), router)
    blocks = [read.sequential(attention, layer)] * fields.count()
    return read.language(
        fields,
        blocks,
        eps=1e-5,
        ids=(1, 2, None),
        positions=rotary(fields, theta=1e6, adapt=with_factors),
        trunk={"norm": "layer"},
        text={"head_bias": True} if fields.get("lm_head_bias", bool, False) else {},
    )


def with_factors(form: Fields, scaling: Plain) -> Plain:
    """The factors on cos and sin are written down, and the long divisors are never used (as in transformers)."""
    if scaling["type"] != "longrope":
        raise form.error("rope_type", f"got {scaling['type']!r}, supported is 'longrope' or 'default'")
    factors = {"attention_factor": "short_mscale", "long_attention_factor": "long_mscale"}
    return {**scaling, "switch": False, **{ours: form.get(theirs, float) for ours, theirs in factors.items()}}


def config(model: Language) -> Plain:
    """The fields of Phi-3.5-MoE."""
    attention, layer = write.attention(model), write.mixture(model)
    router = of_type(layer["router"], "ffn.router", "sparse_mixer")
    return {
        **positions(model),
        **write.write_grouped(model),
        "sliding_window": write.window(model),
        "attention_bias": attention["bias"],
        "lm_head_bias": model.text["head_bias"],
        "hidden_act": "silu",
        "intermediate_size": of_type(layer["experts"], "ffn.experts", "swiglu")["hidden"],
        "num_local_experts": layer["routed"],
        "num_experts_per_tok": 2,
        "router_jitter_noise": router["near_tie"],
    }


def positions(model: Language) -> Plain:
    """The common fields, with the factors on cos and sin where positions are stretched."""
    rope = model.trunk["rope"]
    scaling = rope["scaling"]
    if scaling is None:
        return write.write_language(model)
    within = of_type(scaling, "backbone.rope.scaling", "longrope")["attention_factor"]
    if within is None:
        raise MismatchError("backbone.rope.scaling.attention_factor: is none, expected a number")
    plain = {**rope, "scaling": {**scaling, "attention_factor": None}}
    fields = write.write_language(replace(model, trunk={**model.trunk, "rope": plain}))
    beyond = scaling["long_attention_factor"]
    factors = {"short_mscale": within, "long_mscale": within if beyond is None else beyond}
    return {**fields, **{form: {**fields[form], **factors} for form in ("rope_scaling", "rope_parameters")}}


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """Router and experts go by other names on the hub than in transformers 5."""
    moe, router = ("mlp", "router") if layout == FUSED else ("block_sparse_moe", "gate")
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        layer = block["ffn"]
        yield from rules.pre_norms(theirs, ours, model)
        yield from rules.grouped(f"{theirs}.self_attn", f"{ours}.attention", block["attention"])
        yield Piece(f"{theirs}.{moe}.{router}.weight", f"{ours}.ffn.router.gate.weight")
        hidden = layer["experts"]["hidden"]
        yield from rules.experts(
            f"{theirs}.{moe}.experts", f"{ours}.ffn.experts", layer["routed"], hidden, layout, NAMES
        )


FAMILY = Family(
    name="phimoe",
    architecture="PhimoeForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    layouts=(SEPARATE, FUSED),
    # noise on the states in training
    harmless=frozenset({"input_jitter_noise"}),
)
