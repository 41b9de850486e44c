"""Qwen3: norms over query and key heads."""

BASE: dict = {"head_dim": 8}
VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True, "head_dim": 16},
    "biases": {"attention_bias": True},
    "window": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "yarn": {
        "rope_parameters": {
            "rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
        }
    },
}  # fmt: skip
