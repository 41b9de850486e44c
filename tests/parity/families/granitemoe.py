"""Granite-MoE: factors everywhere, experts in one tensor."""

BASE: dict = {"num_local_experts": 6, "num_experts_per_tok": 3, "attention_multiplier": 0.2}
VARIANTS = {
    "plain": {},
    "factors": {"embedding_multiplier": 1.5, "residual_multiplier": 0.22, "logits_scaling": 6.0},
    "tied": {"tie_word_embeddings": True, "attention_bias": True, "logits_scaling": 0.3},
}
