"""Hunyuan: norms after rotation, a shared network, a number of chosen experts per layer, a stretch by alpha."""

BASE: dict = {"num_experts": 6, "moe_topk": 3, "head_dim": 8}
VARIANTS = {
    "plain": {},
    "one chosen": {"moe_topk": 1, "head_dim": 12},
    "per layer": {"moe_topk": [3, 1, 2], "num_hidden_layers": 3, "attention_bias": True, "tie_word_embeddings": True},
    "alpha": {
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "alpha": 50.0, "factor": 1.0},
        "num_key_value_heads": 4,
    },
}
