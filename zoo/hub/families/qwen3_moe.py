"""Qwen3-MoE: norms over query and key heads, routed experts alone; some layers may be dense (arXiv 2505.09388)."""

from __future__ import annotations

from zoo.hub.conversion import read, write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.families import qwen2_moe
from zoo.spec import Plain


def spec(fields: Fields) -> Language:
    """Where it is switched on, the window is in every layer."""
    depth, bias = fields.count(), fields.get("attention_bias", bool, False)
    attention = read.grouped(fields, bias=bias, out_bias=bias, kv_heads=4) | {"qk_norm": True}
    on, size = fields.get("use_sliding_window", bool, False), fields.get("sliding_window", int, 4096)
    attention["window"] = size if on else None
    routed = fields.get(("num_experts", "num_local_experts"), int, 128)
    layer = read.moe(read.swiglu(fields, "moe_intermediate_size"), routed, qwen2_moe.router(fields, 8))
    dense = read.dense(fields, default=6144)
    blocks = [read.sequential(attention, layer if has else dense) for has in read.sparse(fields, depth, routed)]
    return read.language(fields, blocks)


def config(model: Language) -> Plain:
    """The fields of Qwen3-MoE."""
    return {
        **write.write_language(model),
        **write.write_grouped(model),
        **write.write_windows(model, layered=False),
        **qwen2_moe.experts(model),
        "attention_bias": write.attention(model)["bias"],
    }


FAMILY = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    spec=spec,
    config=config,
    rules=qwen2_moe.pieces,
    layouts=(SEPARATE, FUSED),
    harmless=frozenset({"max_window_layers"}),  # written beside the window, read by nobody
)
