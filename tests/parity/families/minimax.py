"""MiniMax-01: lightning attention in blocks shorter than a row, softmax attention between, factors everywhere."""

FULL, LINEAR = "full_attention", "linear_attention"
BASE: dict = {"num_local_experts": 6, "num_experts_per_tok": 3, "block_size": 8}
VARIANTS = {
    "plain": {},
    "factors": {
        "layer_types": [LINEAR, LINEAR, FULL], "num_hidden_layers": 3, "linear_attn_alpha_factor": 1.5,
        "linear_attn_beta_factor": 0.7, "full_attn_alpha_factor": 1.2, "full_attn_beta_factor": 0.8,
        "mlp_alpha_factor": 1.3, "mlp_beta_factor": 0.6,
    },
    "linear alone": {"layer_types": [LINEAR] * 2, "head_dim": 12, "tie_word_embeddings": True},
    "window": {"sliding_window": 6, "num_experts_per_tok": 1, "block_size": 256},
}  # fmt: skip
# With a cache, the peer takes the length so far from its first layer: where that one is linear, it is 0, and padded
# rows go wrong.
GENERATE = {"use_cache": False}
DECAYS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


def unused(name: str, fields: dict) -> bool:
    """Decays are saved, and computed where they are not there."""
    return name.endswith(DECAYS)
