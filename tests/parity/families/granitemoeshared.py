"""Granite-MoE with a shared expert."""

BASE: dict = {"num_local_experts": 6, "num_experts_per_tok": 3, "attention_multiplier": 0.2}
VARIANTS = {
    "shared": {"shared_intermediate_size": 24, "residual_multiplier": 0.22},
    "none": {"shared_intermediate_size": 0, "tie_word_embeddings": True},
    "linear rope": {
        "shared_intermediate_size": 8,
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0},
    },
}
