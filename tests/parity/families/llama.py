"""Llama."""

BASE: dict = {}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 16,
}
VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": None},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 16, "rms_norm_eps": 1e-3, "pad_token_id": None, "eos_token_id": [2, 3]},
    "linear": {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.5}},
    "dynamic": {
        "max_position_embeddings": 16,
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0},
    },
    "yarn": {"rope_parameters": {"rope_theta": 1e4, **YARN}},
    "yarn set": {
        "rope_parameters": {"rope_theta": 1e4, **YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.8}
    },
    "llama3": {"rope_parameters": {"rope_theta": 5e5, **LLAMA3, "original_max_position_embeddings": 16}},
    "longrope": {"rope_parameters": {"rope_theta": 1e4, **LONG}},
}
