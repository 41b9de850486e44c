"""The usual gate: one linear map of the router's input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.moe.gates.base import Signal, affine
from zoo.moe.gates.drawn import DrawnGate, DrawnGateSpec, undrawn
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class LinearGateSpec(DrawnGateSpec):
    """One linear map.

    jitter  training multiplies the input of selection (not of weights) by U(1 - jitter, 1 + jitter); 0 is off
    bias    whether the map has a (learned) bias, which weights see too (gpt-oss)
    """

    jitter: float = 0.0
    bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter: got {self.jitter}, expected 0 <= jitter < 1")

    @property
    def noise(self) -> bool:
        return self.jitter > 0

    def cost(self, dim: int, pool: Pool) -> Cost:
        return linear_cost(dim, pool.columns, self.bias)

    def build(self, dim: int, pool: Pool) -> LinearGate:
        return LinearGate(self, dim, pool)


class LinearGate(DrawnGate):
    """weight [E + Ns, D], and bias [E + Ns] where it has one."""

    spec: LinearGateSpec

    def __init__(self, spec: LinearGateSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, pool)
        self.weight = undrawn(pool.columns, dim)
        self.bias = undrawn(pool.columns) if spec.bias else None
        self.reset_parameters()

    def logits(self, x: Tensor, ctx: RoutingContext) -> Tensor:
        return affine(x, self.weight, self.bias)

    def signal(self, x: Tensor, ctx: RoutingContext) -> Signal:
        raw = affine(x, self.weight, self.bias)
        noisy = raw
        if self.spec.jitter and ctx.training and ctx.generator is not None:
            noise = torch.empty(x.shape, dtype=torch.float32, device=ctx.generator.device)
            noise.uniform_(1 - self.spec.jitter, 1 + self.spec.jitter, generator=ctx.generator)
            noisy = affine(x * noise.to(x.device), self.weight, self.bias)
        return Signal(raw, noisy[:, : self.pool.experts] if self.pool.shared else noisy, raw)
