"""Fields that a family cannot express are refused, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from zoo.backbone.attention.grouped_query import GroupedQuerySpec
from zoo.backbone.blocks.sequential import SequentialSpec
from zoo.hub.conversion.checkpoint import describe
from zoo.spec import SpecError

TINY: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 4,
}  # fmt: skip
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 2, "long_factor": [1.0] * 2}
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\); .* only mxfp4 are read here"),
    ("gpt_oss", {"initial_context_length": 512}, r"initial_context_length: got 512, .* stretched from 4096"),
    ("ernie4_5_moe", {"moe_norm_min": 0.1}, r"moe_norm_min: got 0.1"),
    ("ernie4_5_moe", {"moe_layer_interval": 0}, r"moe_layer_interval: got 0"),
    ("hunyuan_v1_moe", {"num_shared_expert": [1, 2]}, r"num_shared_expert: got \[1, 2\], supported is 1"),
    ("hunyuan_v1_moe", {"use_cla": True}, r"use_cla: got True, supported is False"),
    ("hunyuan_v1_moe", {"moe_topk": [1]}, r"moe_topk: got \[1\], .* one for each of 2 layers"),
    ("phimoe", {"num_experts_per_tok": 3}, r"num_experts_per_tok: got 3, supported is 2"),
    ("phimoe", {"rope_scaling": LONG}, r"rope_scaling: short_mscale: missing"),
    ("phimoe", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"rope_type: got 'linear'"),
    ("jetmoe", {"head_dim": None, "num_attention_heads": 5}, r"num_attention_heads: got 5, supported is 4"),
    ("minimax", {"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types: got"),
    ("minimax", {"postnorm": False}, r"postnorm: got False, supported is True"),
    ("minimax", {"rotary_dim": 6}, r"rotary_dim: got 6, expected 1..4"),
]


@pytest.mark.parametrize(("family", "fields", "reason"), CASES)
def test_what_a_family_cannot_express_is_refused(family: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        describe({**TINY, "model_type": family, **fields}, Path("config.json"))


FINE = {"norm_topk_prob": True, "moe_intermediate_size": 8}


@pytest.mark.parametrize(
    ("family", "more"),
    [
        *((name, {}) for name in ("mixtral", "granitemoe", "gpt_oss", "minimax", "olmoe")),
        *((name, FINE) for name in ("qwen2_moe", "qwen3_moe")),
    ],
)
def test_one_chosen_expert_is_read(family: str, more: dict[str, Any]) -> None:
    fields = {**TINY, "model_type": family, "num_experts": 4, "num_experts_per_tok": 1, **more}
    _, spec = describe(fields, Path("config.json"))
    assert cast(Any, spec.backbone.layers[0].block).ffn.router.k == 1


def test_half_of_each_head_turns_in_minimax() -> None:
    _, spec = describe({**TINY, "model_type": "minimax", "rotary_dim": 2}, Path("config.json"))
    attention = cast(SequentialSpec, spec.backbone.layers[0].block).attention
    assert isinstance(attention, GroupedQuerySpec) and attention.partial == 0.5
