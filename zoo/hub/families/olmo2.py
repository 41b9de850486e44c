"""OLMo 2: norms after the branches, and over the whole width of queries and keys (arXiv 2501.00656)."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.hub.conversion import read, rules, write
from zoo.hub.conversion.family import Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.pieces import Piece
from zoo.spec import Plain


def spec(fields: Fields) -> Language:
    """One bias flag for all four attention maps."""
    bias = fields.get("attention_bias", bool, False)
    attention = read.grouped(fields, bias=bias, out_bias=bias) | {"qk_norm": True, "qk_norm_over": "all"}
    block = read.sequential(attention, read.dense(fields), norm="after")
    return read.language(fields, [block] * fields.count(), eps=1e-5, ids=(None, 50279, 1))


def config(model: Language) -> Plain:
    """The fields of OLMo 2."""
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        **write.write_dense(model),
        "attention_bias": write.attention(model)["bias"],
    }


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """The tensors of OLMo 2."""
    yield from rules.frame(model)
    for theirs, ours, block in rules.blocks(model):
        yield from rules.post_norms(theirs, ours, model)
        yield from rules.grouped(f"{theirs}.self_attn", f"{ours}.attention", block["attention"])
        yield from rules.glu(f"{theirs}.mlp", f"{ours}.ffn", block["ffn"]["hidden"])


FAMILY = Family(name="olmo2", architecture="Olmo2ForCausalLM", spec=spec, config=config, rules=pieces)
