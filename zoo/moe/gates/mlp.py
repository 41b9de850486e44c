"""A gate of two layers (the released code of MoE++, arXiv 2410.07348)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.moe.gates.base import Gate, GateSpec, affine
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class MLPGateSpec(GateSpec):
    """W2 tanh(W1 x), both without bias.

    hidden    width between the two, null for eight times the number of experts (as released)
    init_std  standard deviation of the initial weights
    """

    hidden: int | None = None
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"hidden: got {self.hidden}, expected 1 or more, or null")
        if self.init_std < 0:
            raise ValueError(f"init_std: got {self.init_std}, expected 0 or more")

    def width(self, pool: Pool) -> int:
        """Width between the layers."""
        return 8 * pool.columns if self.hidden is None else self.hidden

    def cost(self, dim: int, pool: Pool) -> Cost:
        return linear_cost(dim, self.width(pool)) + linear_cost(self.width(pool), pool.columns)

    def build(self, dim: int, pool: Pool) -> MLPGate:
        return MLPGate(self, dim, pool)


class MLPGate(Gate):
    """inner [H, D], outer [E + Ns, H]."""

    def __init__(self, spec: MLPGateSpec, dim: int, pool: Pool) -> None:
        super().__init__(pool)
        self.spec = spec
        self.inner = nn.Parameter(torch.empty(spec.width(pool), dim, dtype=torch.float32))
        self.outer = nn.Parameter(torch.empty(pool.columns, spec.width(pool), dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.inner, self.outer):
            nn.init.normal_(weight, std=self.spec.init_std)

    def logits(self, x: Tensor, ctx: RoutingContext) -> Tensor:
        return affine(torch.tanh(affine(x, self.inner)), self.outer)
