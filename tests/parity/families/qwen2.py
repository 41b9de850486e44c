"""Qwen2: biases on queries, keys and values, windows in upper layers."""

BASE: dict = {}
VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "window above": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "window listed": {
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "window off": {"use_sliding_window": False, "sliding_window": 6, "max_window_layers": 0},
}
