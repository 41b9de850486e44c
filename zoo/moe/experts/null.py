"""Null experts compute in place and are never dispatched: zero, copy, constant (MoE++, arXiv 2410.07348)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.pool import Pool
from zoo.moe.routing import Routing
from zoo.spec import Cost, linear_cost


def null_cost(dim: int, pool: Pool) -> Cost:
    """Parameters of the null experts; only constant ones have any. Their operations are not matrix products but for
    the two mixing logits; all of them are counted as active since they are computed densely."""
    return (linear_cost(dim, 2) + Cost(dim, dim, 0)).times(pool.null.constant)


class NullExperts(nn.Module):
    """Adds what copy and constant experts answer; zero experts answer nothing."""

    def __init__(self, dim: int, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        count = pool.null.constant
        self.mix = nn.Parameter(torch.empty(count, 2, dim)) if count else None
        self.value = nn.Parameter(torch.empty(count, dim)) if count else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """v ~ N(0, 1); the mixing map as a linear layer is drawn."""
        if self.mix is not None and self.value is not None:
            nn.init.normal_(self.mix, std=self.mix.shape[-1] ** -0.5)
            nn.init.normal_(self.value)

    def forward(self, x: Tensor, routing: Routing) -> Tensor | None:
        """x [T, D] -> [T, D], or None where the pool has no null expert that answers anything.

        All of them together are a multiple of x and a sum of the constants, so x is read twice however many there are.
        """
        null, wide = self.pool.null, torch.promote_types(x.dtype, torch.float32)
        if not null.copy and self.mix is None:
            return None
        scale = x.new_zeros(len(x), dtype=wide)
        if null.copy:
            scale = self._gates(routing, self.pool.first("copy"), null.copy).sum(-1).to(wide)
        if self.mix is None or self.value is None:
            return scale[:, None].to(x.dtype) * x
        gates = self._gates(routing, self.pool.first("constant"), null.constant).to(wide)
        mix = F.linear(x, self.mix.flatten(0, 1).to(x.dtype)).unflatten(-1, (null.constant, 2))
        share = torch.softmax(mix.to(wide), dim=-1) * gates[..., None]
        scale = scale + share[..., 0].sum(-1)
        return scale[:, None].to(x.dtype) * x + share[..., 1].to(x.dtype) @ self.value.to(x.dtype)

    @staticmethod
    def _gates(routing: Routing, start: int, count: int) -> Tensor:
        """[T, count] the weight a token gives to each of the experts from `start` on."""
        ids = torch.arange(start, start + count, device=routing.expert.device)
        chosen = routing.expert[..., None] == ids
        return torch.where(chosen, routing.gate[..., None], 0).sum(1)
