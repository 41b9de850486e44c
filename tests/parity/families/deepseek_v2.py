"""DeepSeek-V2: latent attention, softmax over all experts, groups that rank by their best expert."""

BASE: dict = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
VARIANTS = {
    "plain": {},
    "lite": {"q_lora_rank": None, "n_group": 4, "topk_group": 1, "topk_method": "greedy"},
    "groups": {
        "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 4.0,
        "first_k_dense_replace": 0, "n_shared_experts": 1,
    },
    "tied": {"tie_word_embeddings": True, "attention_bias": True, "num_hidden_layers": 3},
    "yarn": {
        "rope_parameters": {
            "rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
            "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.5,
        }
    },
}  # fmt: skip
