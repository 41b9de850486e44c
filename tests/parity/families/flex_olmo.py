"""FlexOlmo: OLMoE's layers, norms behind the branches."""

BASE: dict = {"num_experts": 6, "num_experts_per_tok": 3}
VARIANTS = {
    "plain": {},
    "normalised": {"norm_topk_prob": True, "num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True, "attention_bias": True},
}
