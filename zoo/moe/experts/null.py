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
        """x [T, D] -> [T, D], or None where the pool has no null expert that answers anything."""
        parts = []
        if self.pool.null.copy:
            start = self.pool.first("copy")
            parts.append(self._gate(routing, start, start + self.pool.null.copy)[:, None].to(x.dtype) * x)
        if self.mix is not None and self.value is not None:
            for i in range(self.pool.null.constant):
                start = self.pool.first("constant") + i
                gate = self._gate(routing, start, start + 1)[:, None].to(x.dtype)
                mix = F.linear(x, self.mix[i])
                a = torch.softmax(mix.to(torch.promote_types(mix.dtype, torch.float32)), dim=-1).to(x.dtype)
                parts.append(gate * (a[:, :1] * x + a[:, 1:] * self.value[i]))
        return sum(parts[1:], parts[0]) if parts else None

    @staticmethod
    def _gate(routing: Routing, start: int, stop: int) -> Tensor:
        """[T] the weight a token gives to the experts start..stop-1."""
        chosen = (routing.expert >= start) & (routing.expert < stop)
        return torch.where(chosen, routing.gate, 0).sum(-1)
