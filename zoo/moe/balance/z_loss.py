"""Router z-loss: mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906 eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.moe.balance.base import BalanceContext, BalanceSpec
from zoo.moe.routing import Routing


@dataclass(frozen=True, kw_only=True)
class ZLossSpec(BalanceSpec):
    """Keeps router logits small. Has only the keys every rule has."""

    weight: float = 0.001

    def loss(self, routing: Routing, ctx: BalanceContext) -> Tensor:
        squared = torch.logsumexp(routing.logits, dim=-1).square()
        return (torch.where(routing.mask, squared, 0) * ctx.weights(routing, squared.dtype)).sum()
