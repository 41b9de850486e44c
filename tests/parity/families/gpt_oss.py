"""gpt-oss: sinks, windows between, biases and clamps; the limits are low enough to act on random weights."""

BASE: dict = {"num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 8, "swiglu_limit": 1.5}
VARIANTS = {
    "plain": {"sliding_window": 6, "num_hidden_layers": 3},
    "no biases": {"attention_bias": False, "layer_types": ["full_attention"] * 2, "swiglu_alpha": 1.3},
    "wide heads": {"head_dim": 12, "sliding_window": 5, "tie_word_embeddings": True, "swiglu_limit": 7.0},
    "yarn": {
        "rope_parameters": {
            "rope_theta": 1e4, "rope_type": "yarn", "factor": 8.0, "truncate": False, "beta_fast": 32.0,
            "beta_slow": 1.0, "original_max_position_embeddings": 8,
        },
        "sliding_window": 7,
    },
}  # fmt: skip
