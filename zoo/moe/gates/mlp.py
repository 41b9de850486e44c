"""A gate of two layers (the released code of MoE++, arXiv 2410.07348)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.moe.gates.base import affine
from zoo.moe.gates.drawn import DrawnGate, DrawnGateSpec, undrawn
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class MLPGateSpec(DrawnGateSpec):
    """W2 tanh(W1 x), both without bias.

    hidden  width between the two, null for eight times the number of experts (as released)
    """

    hidden: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"hidden: got {self.hidden}, expected 1 or more, or null")

    def width(self, pool: Pool) -> int:
        """Width between the layers."""
        return 8 * pool.columns if self.hidden is None else self.hidden

    def cost(self, dim: int, pool: Pool) -> Cost:
        return linear_cost(dim, self.width(pool)) + linear_cost(self.width(pool), pool.columns)

    def build(self, dim: int, pool: Pool) -> MLPGate:
        return MLPGate(self, dim, pool)


class MLPGate(DrawnGate):
    """inner [H, D], outer [E + Ns, H]."""

    def __init__(self, spec: MLPGateSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, pool)
        self.inner = undrawn(spec.width(pool), dim)
        self.outer = undrawn(pool.columns, spec.width(pool))
        self.reset_parameters()

    def logits(self, x: Tensor, ctx: RoutingContext) -> Tensor:
        return affine(torch.tanh(affine(x, self.inner)), self.outer)
