"""OLMoE: norms over the whole width, weights of the plain softmax unless normalised."""

BASE: dict = {"num_experts": 6, "num_experts_per_tok": 3}
VARIANTS = {
    "plain": {},
    "normalised": {"norm_topk_prob": True, "num_key_value_heads": 4},
    "clipped": {"clip_qkv": 0.5, "attention_bias": True},
    "tied": {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
}
