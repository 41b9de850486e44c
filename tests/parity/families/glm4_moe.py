"""GLM-4.5: half of each head turns, a sigmoid router, dense layers first."""

BASE: dict = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "head_dim": 8,
}
VARIANTS = {
    "plain": {},
    "normed": {"use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 2.5, "n_shared_experts": 2},
    "all turns": {"partial_rotary_factor": 1.0, "norm_topk_prob": False, "first_k_dense_replace": 0},
    "groups": {"n_group": 2, "topk_group": 1, "tie_word_embeddings": True, "num_hidden_layers": 3},
    "linear": {
        "head_dim": 16,
        "rope_parameters": {
            "rope_theta": 1e5, "rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25,
        },
    },
}  # fmt: skip
