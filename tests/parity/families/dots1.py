"""dots.llm1: norms of heads, windows, shared experts beside a sigmoid router."""

BASE: dict = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
VARIANTS = {
    "plain": {},
    "window": {"sliding_window": 6, "max_window_layers": 1, "num_hidden_layers": 3, "head_dim": 6},
    "types": {
        "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_hidden_layers": 3, "attention_bias": True, "norm_topk_prob": False,
    },
    "single": {"num_experts_per_tok": 1, "sliding_window": None},
    "groups": {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "tie_word_embeddings": True},
}  # fmt: skip
