"""LongCat-Flash: two attentions, two dense networks and one MoE layer in a block, experts that answer their input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BASE: dict = {
    "num_hidden_layers": ...,
    "intermediate_size": ...,
    "num_layers": 1,
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "head_dim": 4,
    "v_head_dim": 6,
    "ffn_hidden_size": 40,
    "expert_ffn_hidden_size": 24,
    "n_routed_experts": 6,
    "zero_expert_num": 0,
    "moe_topk": 3,
}
VARIANTS = {
    "plain": {},
    "copies": {"zero_expert_num": 3, "num_layers": 2},
    "biased": {"attention_bias": True, "tie_word_embeddings": True, "routed_scaling_factor": 2.0, "zero_expert_num": 1},
    "yarn": {
        "zero_expert_num": 2,
        "rope_parameters": {
            "rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
            "mscale": 1.0, "mscale_all_dim": 0.8,
        },
    },
}  # fmt: skip


def unused(name: str, fields: dict) -> bool:
    """The maps that the other library saves for experts that answer their input."""
    found = re.fullmatch(r".*\.mlp\.experts\.(\d+)\.(gate|up)_proj\.weight", name)
    return found is not None and int(found[1]) >= fields["n_routed_experts"]


def complete(folder: Path) -> None:
    """Adds those maps to a folder, without which the other library does not open it."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = load_file(folder / "model.safetensors")
    width, dim = fields["expert_ffn_hidden_size"], fields["hidden_size"]
    for layer in range(fields["num_layers"]):
        for i in range(fields["zero_expert_num"]):
            expert = f"model.layers.{layer}.mlp.experts.{fields['n_routed_experts'] + i}"
            state |= {f"{expert}.{name}_proj.weight": torch.zeros(width, dim) for name in ("gate", "up")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
