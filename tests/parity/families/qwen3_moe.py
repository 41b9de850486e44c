"""Qwen3-MoE: norms over query and key heads, dense layers between."""

BASE: dict = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
VARIANTS = {
    "plain": {},
    "normalised": {"norm_topk_prob": True, "head_dim": 16},
    "dense last": {"mlp_only_layers": [2], "num_hidden_layers": 3, "attention_bias": True},
    "every second": {"decoder_sparse_step": 2, "tie_word_embeddings": True},
    "window": {"use_sliding_window": True, "sliding_window": 6},
}
