"""JetMoE: routed attention, a final norm with an epsilon of its own."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

BASE: dict = {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8, "num_attention_heads": ...}
VARIANTS = {
    "plain": {},
    "untied": {"tie_word_embeddings": False, "rms_norm_eps": 1e-3, "num_key_value_heads": 3},
    "three chosen": {"num_experts_per_tok": 3, "kv_channels": 12, "num_hidden_layers": 3},
    "one chosen": {"num_experts_per_tok": 1, "rope_parameters": {
        "rope_theta": 1e4, "rope_type": "linear", "factor": 2.0,
    }},
}  # fmt: skip


def choices(peer: Any, run: Callable[[], Any]) -> list[Tensor]:
    """Its routers answer with sorted rows, so the choice is read from their logits."""
    found: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda m, _, output: found.append(output[-1].topk(m.top_k).indices))
        for name, module in peer.named_modules()
        if name.endswith(".router")
    ]
    run()
    for handle in handles:
        handle.remove()
    return found
