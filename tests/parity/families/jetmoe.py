"""JetMoE: routed attention, a final norm with an epsilon of its own."""

BASE: dict = {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8, "num_attention_heads": ...}
VARIANTS = {
    "plain": {},
    "untied": {"tie_word_embeddings": False, "rms_norm_eps": 1e-3, "num_key_value_heads": 3},
    "three chosen": {"num_experts_per_tok": 3, "kv_channels": 12, "num_hidden_layers": 3},
    "one chosen": {"num_experts_per_tok": 1, "rope_parameters": {
        "rope_theta": 1e4, "rope_type": "linear", "factor": 2.0,
    }},
}  # fmt: skip
