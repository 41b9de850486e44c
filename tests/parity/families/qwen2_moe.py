"""Qwen2-MoE: a gated shared expert, dense layers between, windows in every other layer."""

BASE: dict = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 48,
}
VARIANTS = {
    "plain": {},
    "normalised": {"norm_topk_prob": True, "qkv_bias": False},
    "dense first": {"mlp_only_layers": [0], "num_hidden_layers": 3},
    "every second": {"decoder_sparse_step": 2, "num_hidden_layers": 3, "tie_word_embeddings": True},
    "window": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, "num_hidden_layers": 3},
    "yarn": {
        "rope_parameters": {
            "rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
        }
    },
}  # fmt: skip
