"""Ernie 4.5: a selection bias, shared experts, dense layers before and between, adjacent rotary pairs."""

BASE: dict = {"moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 24}
VARIANTS = {
    "plain": {"num_hidden_layers": 3},
    "biases": {"use_bias": True, "tie_word_embeddings": False},
    "no shared": {"moe_num_shared_experts": 0, "moe_layer_start_index": 0, "tie_word_embeddings": False},
    "every second": {"num_hidden_layers": 5, "moe_layer_interval": 2, "moe_layer_end_index": 3, "use_bias": True},
    "one chosen": {"moe_k": 1, "moe_layer_start_index": 0, "rope_parameters": {
        "rope_theta": 1e4, "rope_type": "linear", "factor": 2.0,
    }},
}  # fmt: skip
