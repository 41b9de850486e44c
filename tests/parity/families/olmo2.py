"""OLMo 2: norms after the branches."""

BASE: dict = {}
VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "biases": {"attention_bias": True, "rms_norm_eps": 1e-6},
    "llama3": {
        "rope_parameters": {
            "rope_theta": 5e5, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}  # fmt: skip
