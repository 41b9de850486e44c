"""DeepSeek-V3: latent attention, groups of experts, dense layers first, a bias that only chooses."""

LIKE = "deepseek_v2"
BASE: dict = {"n_group": 4, "topk_group": 2}
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
