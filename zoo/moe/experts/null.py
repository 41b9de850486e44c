"""Null experts compute in place and are never dispatched: zero, copy, constant (MoE++, arXiv 2410.07348)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.moe.kernels.null import add_constants, add_copies
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

    def forward(self, y: Tensor, x: Tensor, routing: Routing) -> Tensor:
        """y [T, D] and what null experts answer to x [T, D], written over y."""
        x, wide = x.to(y.dtype), torch.promote_types(x.dtype, torch.float32)
        copy = self._copied(routing).to(wide) if self.pool.null.copy else None
        if self.mix is None or self.value is None:
            return y if copy is None else add_copies(y, x, copy)
        ids = torch.arange(self.pool.first("constant"), self.pool.experts, device=x.device)
        gate = torch.where(routing.expert[..., None] == ids, routing.gate[..., None], 0).sum(1).to(wide)
        # a softmax of two logits is the sigmoid of their difference
        return add_constants(y, x, copy, gate, self.mix[:, 0] - self.mix[:, 1], self.value)

    def _copied(self, routing: Routing) -> Tensor:
        """[T] the weight a token gives to copies of itself, however many experts copy."""
        expert, first, end = routing.expert, self.pool.first("copy"), self.pool.first("constant")
        chosen = expert == first if end == first + 1 else (expert >= first) & (expert < end)
        return torch.where(chosen, routing.gate, 0).sum(1)
