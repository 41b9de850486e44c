"""Mixtral: weights normalised over the chosen."""

BASE: dict = {"num_local_experts": 5, "num_experts_per_tok": 2}
VARIANTS = {
    "one chosen": {"num_experts_per_tok": 1},
    "plain": {},
    "window": {"sliding_window": 6, "num_experts_per_tok": 3},
    "tied": {"tie_word_embeddings": True, "head_dim": 16},
    "yarn": {
        "head_dim": 8,
        "rope_parameters": {
            "rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
        }
    },
}  # fmt: skip
