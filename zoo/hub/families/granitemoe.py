"""Granite-MoE: factors on embeddings, branches, attention products and logits (arXiv 2408.13359); experts always in one
tensor per layer."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError, of_type
from zoo.hub.conversion.pieces import Piece
from zoo.spec import Plain


def spec(fields: Fields) -> Language:
    """Softmax over the chosen experts; no shared one."""
    return with_shared(fields, None)


def with_shared(fields: Fields, shared: Plain | None) -> Language:
    """Granite with these shared experts."""
    bias = fields.get("attention_bias", bool, False)
    attention = read.grouped(fields, bias=bias, out_bias=bias)
    attention["scale"] = fields.get("attention_multiplier", float, 1.0)
    router = read.chosen(fields.get("num_experts_per_tok", int, 2))
    routed = fields.get(("num_local_experts", "num_experts"), int, 8)
    layer = read.moe(read.swiglu(fields), routed, router, shared)
    block = read.sequential(attention, layer, residual=fields.get("residual_multiplier", float, 1.0))
    text = {
        "scale": fields.get("embedding_multiplier", float, 1.0),
        "logit_scale": 1 / fields.get("logits_scaling", float, 1.0),
    }
    return read.language(fields, [block] * fields.count(), ids=(1, 2, None), text=text)


def config(model: Language) -> Plain:
    """The fields of Granite-MoE."""
    if write.mixture(model)["shared"] is not None:
        raise MismatchError("ffn.shared: has experts, expected none")
    return common(model)


def common(model: Language) -> Plain:
    """The fields that do not concern shared experts."""
    layer, attention = write.mixture(model), write.attention(model)
    size = write.write_grouped(model)
    return {
        **write.write_language(model),
        "num_attention_heads": size["num_attention_heads"],  # there is no field for another head size
        "num_key_value_heads": size["num_key_value_heads"],
        "attention_bias": attention["bias"],
        "attention_multiplier": size["head_dim"] ** -0.5 if attention["scale"] is None else attention["scale"],
        "residual_multiplier": model.same("residual", lambda block: block["residual"]),
        "embedding_multiplier": model.text["scale"],
        "logits_scaling": divisor(model.text["logit_scale"]),
        "hidden_act": "silu",
        "intermediate_size": of_type(layer["experts"], "ffn.experts", "swiglu")["hidden"],
        "num_local_experts": layer["routed"],
        "num_experts_per_tok": of_type(layer["router"], "ffn.router", "top_k")["k"],
    }


def divisor(factor: float) -> float:
    """The short decimal that the factor is one over, where there is one."""
    near = round(1 / factor, 6)
    return near if near and 1 / near == factor else 1 / factor


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """On the hub the maps of experts are called input_linear (gate and up) and output_linear."""
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        shared = block["ffn"]["shared"]
        yield from rules.pre_norms(theirs, ours, model)
        yield from rules.grouped(f"{theirs}.self_attn", f"{ours}.attention", block["attention"])
        yield from mixture(f"{theirs}.block_sparse_moe", f"{ours}.ffn", layout)
        if shared is not None:
            yield from in_two(f"{theirs}.shared_mlp", f"{ours}.ffn.shared_experts")


def mixture(theirs: str, ours: str, layout: str) -> Iterator[Piece]:
    """Router and experts in the names of the hub, or of transformers 5."""
    if layout == FUSED:
        yield Piece(f"{theirs}.router.weight", f"{ours}.router.gate.weight")
        yield from rules.experts(f"{theirs}.experts", f"{ours}.experts", 0, 0, FUSED)
        return
    yield Piece(f"{theirs}.router.layer.weight", f"{ours}.router.gate.weight")
    yield from in_two(theirs, f"{ours}.experts")


def in_two(theirs: str, ours: str) -> Iterator[Piece]:
    """Networks whose gate and up maps are one tensor, as ours are."""
    yield Piece(f"{theirs}.input_linear.weight", f"{ours}.gate_up")
    yield Piece(f"{theirs}.output_linear.weight", f"{ours}.down")


FAMILY = Family(
    name="granitemoe",
    architecture="GraniteMoeForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    layouts=(SEPARATE, FUSED),
)
