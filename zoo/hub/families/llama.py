"""Llama: the dense decoder that most others vary (arXiv 2302.13971, 2307.09288, 2407.21783)."""

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
    ffn = read.dense(fields, bias=fields.get("mlp_bias", bool, False))
    block = read.sequential(read.grouped(fields, bias=bias, out_bias=bias), ffn)
    return read.language(fields, [block] * fields.count(), ids=(1, 2, None))


def config(model: Language) -> Plain:
    """The fields of Llama."""
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        **write.write_dense(model),
        "attention_bias": write.attention(model)["bias"],
        "mlp_bias": model.same("ffn.bias", lambda block: block["ffn"]["bias"]),
    }


def pieces(model: Language, layout: str) -> Iterator[Piece]:
    """The tensors of Llama and of dense families that name theirs alike."""
    return rules.decoder(model)


FAMILY = Family(name="llama", architecture="LlamaForCausalLM", spec=spec, config=config, rules=pieces)
