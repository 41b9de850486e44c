"""Gating residuals: a layer's logits add a learned map of the layer's before (MoE++, arXiv 2410.07348, equation 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zoo.moe.gates.base import Gate, Signal, affine
from zoo.moe.gates.drawn import DrawnGateSpec, undrawn
from zoo.moe.gates.holding import HoldsGate, HoldsGateSpec
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import Cost, linear_cost

LOGITS = "residual_gate.logits"


@dataclass(frozen=True, kw_only=True)
class ResidualGateSpec(HoldsGateSpec, DrawnGateSpec):
    """G_j = gate(x) + M_j G_{j-1}, G being the whole raw logits of a layer; the first MoE layer has no map.

    gate      what gives a layer's own logits
    init_std  standard deviation of the initial maps
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate.carried:
            raise ValueError("gate: expected one that reads its input alone, such as linear or mlp")

    @property
    def carried(self) -> bool:
        return True

    @property
    def noise(self) -> bool:
        return self.gate.noise

    def follow_cost(self, dim: int, pool: Pool) -> Cost:
        return linear_cost(pool.columns, pool.columns)

    def build(self, dim: int, pool: Pool) -> ResidualGate:
        return ResidualGate(self, dim, pool)


class ResidualGate(HoldsGate, Gate):
    """`gate`, and `map` [E + Ns, E + Ns] in all MoE layers but the first."""

    map: nn.Parameter | None

    def __init__(self, spec: ResidualGateSpec, dim: int, pool: Pool) -> None:
        super().__init__(pool)
        self.spec = spec
        self.gate = spec.gate.build(dim, pool)
        self.register_parameter("map", None)

    def link(self, earlier: Sequence[Gate]) -> None:
        if any(isinstance(gate.core, ResidualGate) for gate in earlier):
            self.map = undrawn(self.pool.columns, self.pool.columns)
            nn.init.normal_(self.map, std=self.spec.init_std)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.map is not None:
            nn.init.normal_(self.map, std=self.spec.init_std)

    def signal(self, x: Tensor, ctx: RoutingContext) -> Signal:
        own = self.gate.signal(x, ctx)
        if self.map is None:
            return own._replace(carry={LOGITS: own.raw})
        past = affine(ctx.carry[LOGITS], self.map)
        raw = own.raw + past
        return own._replace(
            raw=raw,
            selection=own.selection + past[:, : self.pool.experts],
            weighing=own.weighing + past,
            carry={LOGITS: raw},
        )
