"""dots.llm1: attention of Qwen3 over experts of DeepSeek-V3 (arXiv 2506.05767)."""

from __future__ import annotations

from zoo.hub.conversion import fine, read, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.spec import Plain

DEFAULT = fine.Defaults(width=1408, dense=10944)


def windows(fields: Fields, depth: int) -> list[int | None]:
    """The sliding window of each layer: where `layer_types` says, else from layer `max_window_layers` on. Unlike in
    Qwen, no switch is looked at; one that says otherwise is refused."""
    size, start = fields.optional("sliding_window", int, 4096), fields.get("max_window_layers", int, 62)
    types = read.layer_types(fields, depth)
    each = [i >= start if types is None else types[i] == read.WINDOWED for i in range(depth)]
    found = [size if here else None for here in each]
    fields.only("use_sliding_window", True, *([] if any(found) else [False]))
    return found


def spec(fields: Fields) -> Language:
    """The publisher writes the method of selection into `scoring_func`."""
    depth, bias = fields.count(), fields.get("attention_bias", bool, False)
    fields.only("qk_layernorm", True)
    attention = read.grouped(fields, bias=bias, out_bias=bias) | {"qk_norm": True}
    router = fine.read_sigmoid(fields, DEFAULT, "noaux_tc")
    each = zip(windows(fields, depth), fine.read_layers(fields, depth, router, DEFAULT), strict=True)
    return read.language(fields, [read.sequential({**attention, "window": size}, layer) for size, layer in each])


def config(model: Language) -> Plain:
    """The fields of dots.llm1."""
    sizes = write.write_windows(model)
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        **fine.write_layers(model),
        **fine.write_sigmoid(model),
        **{name: sizes[name] for name in ("sliding_window", "max_window_layers", "layer_types")},
        "attention_bias": write.attention(model)["bias"],
    }


FAMILY = Family(
    name="dots1",
    architecture="Dots1ForCausalLM",
    spec=spec,
    config=config,
    rules=fine.pieces,
    layouts=(SEPARATE, FUSED),
    harmless=fine.SPLIT,
)
