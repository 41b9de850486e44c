"""Blocks that predict further tokens are left unread where config.json speaks of them, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.hub.conversion.checkpoint import full
from zoo.hub.conversion.surplus import PREDICTORS
from zoo.hub.tensors import WeightsError
from zoo.spec import SpecError

DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_key_value_heads": 4,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
    "num_local_experts": ..., "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
}  # fmt: skip
LONGCAT: dict[str, Any] = {
    **{key: value for key, value in DEEPSEEK.items() if key.endswith(("_rank", "_dim", "_heads"))},
    "model_type": "longcat_flash", "architectures": ["LongcatFlashForCausalLM"], "num_hidden_layers": ...,
    "num_local_experts": ..., "intermediate_size": ..., "num_experts_per_tok": ..., "num_layers": 1,
    "ffn_hidden_size": 12, "expert_ffn_hidden_size": 8, "n_routed_experts": 3, "zero_expert_num": 2, "moe_topk": 2,
}  # fmt: skip
BEHIND = "model.layers.2.eh_proj.weight"


@pytest.fixture
def deepseek(write: Any) -> Any:
    """A DeepSeek-V3 of two blocks whose files hold a tensor of a third."""

    def make(**changes: Any) -> Any:
        checkpoint = write(**{**DEEPSEEK, **changes})
        checkpoint.tensors[BEHIND] = torch.ones(16, 32)
        checkpoint.write()
        return checkpoint

    return make


def test_as_many_blocks_as_announced_are_left_unread(deepseek: Any, tmp_path: Path) -> None:
    checkpoint = deepseek(num_nextn_predict_layers=1)
    model = zoo.load(checkpoint.folder)
    assert model.spec.backbone.depth == 2
    content = json.loads((zoo.export(model, tmp_path / "again") / "config.json").read_text(encoding="utf-8"))
    assert content[PREDICTORS] == 0 and content["model_type"] == "deepseek_v3"


@pytest.mark.parametrize("changes", [{}, {PREDICTORS: 0}])
def test_blocks_that_are_not_announced_are_surplus(deepseek: Any, changes: dict[str, int]) -> None:
    with pytest.raises(WeightsError, match=f"surplus {BEHIND}"):
        zoo.load(deepseek(**changes).folder)


def test_a_block_beyond_the_announced_ones_is_surplus(deepseek: Any) -> None:
    checkpoint = deepseek(num_nextn_predict_layers=1)
    checkpoint.tensors["model.layers.3.eh_proj.weight"] = torch.ones(2)
    checkpoint.write()
    with pytest.raises(WeightsError, match=r"1 tensors do not fit[^\n]*\n  surplus model\.layers\.3\.eh_proj\.weight"):
        zoo.load(checkpoint.folder)


@pytest.mark.parametrize("count", [-1, 65, 10**9])
def test_their_number_is_bounded(write: Any, count: int) -> None:
    with pytest.raises(SpecError, match=f"{PREDICTORS}: got {count}, expected 0..64"):
        write(**DEEPSEEK, num_nextn_predict_layers=count)


def test_longcat_has_them_apart_and_maps_that_nobody_reads(write: Any) -> None:
    checkpoint = write(**LONGCAT)
    checkpoint.tensors["model.mtp.layers.0.eh_proj.weight"] = torch.ones(2)
    checkpoint.tensors |= {f"model.layers.0.mlp.experts.{i}.up_proj.weight": torch.ones(8, 16) for i in (3, 4)}
    checkpoint.write()
    block = full(zoo.load(checkpoint.folder).spec).blocks[0]
    assert block["moe"]["null_experts"]["copy"] == 2
    checkpoint.tensors["model.layers.0.mlp.experts.5.up_proj.weight"] = torch.ones(8, 16)
    checkpoint.write()
    with pytest.raises(WeightsError, match=r"surplus model\.layers\.0\.mlp\.experts\.5\.up_proj\.weight"):
        zoo.load(checkpoint.folder)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({**DEEPSEEK, "num_key_value_heads": 2}, "num_key_value_heads"),
        ({**DEEPSEEK, "topk_method": "greedy"}, "topk_method"),
        ({**DEEPSEEK, "scoring_func": "softmax"}, "scoring_func"),
        ({**DEEPSEEK, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**DEEPSEEK, "moe_layer_freq": 2}, "moe_layer_freq"),
        ({**LONGCAT, "router_bias": True}, "router_bias"),
        ({**LONGCAT, "zero_expert_type": "drop"}, "zero_expert_type"),
        ({**LONGCAT, "num_hidden_layers": 3}, "num_hidden_layers"),
        ({**LONGCAT, "mla_scale_q_lora": False}, "mla_scale_q_lora"),
    ],
)
def test_what_these_families_cannot_express_is_refused(write: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError, match=f"{field}: got"):
        write(**fields)
