"""Entropy of the router's distribution, so that a top-p router stays decided (arXiv 2403.07652, the dynamic loss)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.moe.balance.base import BalanceContext, BalanceSpec
from zoo.moe.routing import Routing


@dataclass(frozen=True, kw_only=True)
class EntropySpec(BalanceSpec):
    """Mean over tokens of -sum_i P_i log P_i, P the softmax over all experts, in nats: the smaller, the fewer experts a
    top-p router needs. Has only the keys every rule has.
    """

    weight: float = 1e-4

    def loss(self, routing: Routing, ctx: BalanceContext) -> Tensor:
        logp = torch.log_softmax(routing.logits, dim=-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return (torch.where(routing.mask, entropy, 0) * ctx.weights(routing, entropy.dtype)).sum()
