"""DeepSeek-V3: latent attention, groups of experts, dense layers first, a bias that only chooses."""

BASE: dict = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
VARIANTS = {
    "plain": {},
    "halves": {"rope_interleave": False, "q_lora_rank": None, "norm_topk_prob": False, "n_shared_experts": 2},
    "one group": {"n_group": 1, "topk_group": 1, "attention_bias": True, "first_k_dense_replace": 0},
    "tied": {"tie_word_embeddings": True, "num_hidden_layers": 3, "first_k_dense_replace": 2},
    "yarn": {
        "rope_parameters": {
            "rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.8,
        }
    },
}  # fmt: skip
