"""FlexOlmo: OLMoE's layers with OLMo 2's norms behind the branches (arXiv 2507.07024)."""

from __future__ import annotations

from zoo.hub.conversion import read
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.rotary import rotary
from zoo.hub.families import olmoe, qwen2_moe


def spec(fields: Fields) -> Language:
    """`norm_topk_prob` divides the weights by their sum over the chosen."""
    bias = fields.get("attention_bias", bool, False)
    attention = read.grouped(fields, bias=bias, out_bias=bias) | {"qk_norm": True, "qk_norm_over": "all"}
    routed = fields.get(("num_experts", "num_local_experts"), int, 7)
    layer = read.moe(read.swiglu(fields), routed, qwen2_moe.router(fields, 5))
    block = read.sequential(attention, layer, norm="after")
    positions = rotary(fields, theta=5e5)
    return read.language(fields, [block] * fields.count(), ids=(None, 100257, 100277), positions=positions)


FAMILY = Family(
    name="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    spec=spec,
    config=olmoe.shared,
    rules=olmoe.pieces,
    layouts=(SEPARATE, FUSED),
)
