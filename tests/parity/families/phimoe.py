"""Phi-3.5-MoE: SparseMixer with wide ties, LayerNorm, a head with a bias, positions beyond the trained length."""

SHORT, LONG = [1.0, 1.1, 1.3, 2.0], [1.0, 2.0, 4.0, 8.0]
BASE: dict = {"num_local_experts": 6, "num_experts_per_tok": 2, "router_jitter_noise": 0.2}


def longrope(trained: int) -> dict:
    """Divisors for heads of 8 dimensions, four of them."""
    return {
        "rope_theta": 1e4, "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
        "short_mscale": 1.1, "long_mscale": 1.3, "original_max_position_embeddings": trained, "factor": 64 / trained,
    }  # fmt: skip


VARIANTS = {
    "plain": {},
    "biases": {"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.01},
    "window": {"sliding_window": 6, "tie_word_embeddings": True, "num_key_value_heads": 4},
    "beyond": {"rope_parameters": longrope(8), "lm_head_bias": True},
    "within": {"rope_parameters": longrope(32)},
}
