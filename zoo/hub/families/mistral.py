"""Mistral: Llama with a sliding window in every layer (arXiv 2310.06825)."""

from __future__ import annotations

from zoo.hub.conversion import read, write
from zoo.hub.conversion.family import Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.families.llama import pieces
from zoo.spec import Plain


def spec(fields: Fields) -> Language:
    """A window of 4096 unless the field is there; null is none."""
    attention = read.grouped(fields, kv_heads=8)
    attention["window"] = fields.optional("sliding_window", int, 4096)
    block = read.sequential(attention, read.dense(fields))
    return read.language(fields, [block] * fields.count(), ids=(1, 2, None))


def config(model: Language) -> Plain:
    """The fields of Mistral."""
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        **write.write_dense(model),
        "sliding_window": write.window(model),
    }


FAMILY = Family(name="mistral", architecture="MistralForCausalLM", spec=spec, config=config, rules=pieces)
