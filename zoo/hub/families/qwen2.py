"""Qwen2: biases on queries, keys and values, a window in upper layers where switched on (arXiv 2407.10671)."""

from __future__ import annotations

from zoo.hub.conversion import read, write
from zoo.hub.conversion.family import Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.families.llama import pieces
from zoo.spec import Plain


def upper(layer: int, start: int) -> bool:
    """Where windows are unless `layer_types` says: from `max_window_layers` on."""
    return layer >= start


def spec(fields: Fields) -> Language:
    """The window is that of `read.windows`."""
    depth = fields.count()
    attention, ffn = read.grouped(fields, bias=True, kv_heads=32), read.dense(fields)
    each = read.windows(fields, upper, depth)
    return read.language(fields, [read.sequential({**attention, "window": window}, ffn) for window in each])


def config(model: Language) -> Plain:
    """The fields of Qwen2."""
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        **write.write_dense(model),
        **write.write_windows(model),
    }


FAMILY = Family(name="qwen2", architecture="Qwen2ForCausalLM", spec=spec, config=config, rules=pieces)
