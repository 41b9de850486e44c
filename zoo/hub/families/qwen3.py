"""Qwen3: Qwen2 with norms over query and key heads in place of biases (arXiv 2505.09388)."""

from __future__ import annotations

from zoo.hub.conversion import read, write
from zoo.hub.conversion.family import Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.families import qwen2
from zoo.hub.families.llama import pieces
from zoo.spec import Plain


def spec(fields: Fields) -> Language:
    """A head size of 128 unless the field is there."""
    depth, bias = fields.count(), fields.get("attention_bias", bool, False)
    attention = read.grouped(fields, bias=bias, out_bias=bias, kv_heads=32, head_dim=128) | {"qk_norm": True}
    each, ffn = read.windows(fields, qwen2.upper, depth), read.dense(fields)
    return read.language(fields, [read.sequential({**attention, "window": window}, ffn) for window in each])


def config(model: Language) -> Plain:
    """The fields of Qwen3."""
    return {**qwen2.config(model), "attention_bias": write.attention(model)["bias"]}


FAMILY = Family(name="qwen3", architecture="Qwen3ForCausalLM", spec=spec, config=config, rules=pieces)
