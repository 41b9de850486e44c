"""OLMoE: norms over the whole width of queries and keys, weights of the plain softmax (arXiv 2409.02060)."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.pieces import Piece
from zoo.hub.families import qwen2_moe
from zoo.spec import Plain


def spec(fields: Fields) -> Language:
    """`norm_topk_prob` divides the weights by their sum over the chosen."""
    bias = fields.get("attention_bias", bool, False)
    attention = read.grouped(fields, bias=bias, out_bias=bias) | {"qk_norm": True, "qk_norm_over": "all"}
    attention["clip"] = fields.get("clip_qkv", float, None)
    router = qwen2_moe.router(fields, 8)
    routed = fields.get(("num_experts", "num_local_experts"), int, 64)
    block = read.sequential(attention, read.moe(read.swiglu(fields), routed, router))
    return read.language(fields, [block] * fields.count(), eps=1e-5, ids=(None, 50279, 1))


def config(model: Language) -> Plain:
    """The fields of OLMoE."""
    return {**shared(model), "clip_qkv": write.attention(model)["clip"]}


def shared(model: Language) -> Plain:
    """The fields that FlexOlmo has too."""
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        **write.write_routed(model),
        "attention_bias": write.attention(model)["bias"],
    }


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """The tensors of OLMoE, and of FlexOlmo, whose norms stand behind the branches."""
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        ffn = block["ffn"]
        yield from (rules.post_norms if block["norm"] == "after" else rules.pre_norms)(theirs, ours, model)
        yield from rules.grouped(f"{theirs}.self_attn", f"{ours}.attention", block["attention"])
        yield Piece(f"{theirs}.mlp.gate.weight", f"{ours}.ffn.router.gate.weight")
        yield from rules.experts(
            f"{theirs}.mlp.experts", f"{ours}.ffn.experts", ffn["routed"], ffn["experts"]["hidden"], layout
        )


FAMILY = Family(
    name="olmoe",
    architecture="OlmoeForCausalLM",
    spec=spec,
    config=config,
    rules=pieces,
    layouts=(SEPARATE, FUSED),
)
