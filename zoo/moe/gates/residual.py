"""Gating residuals: a layer's logits add a learned map of the layer's before (MoE++, arXiv 2410.07348, equation 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
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
    spread    standard deviation over the experts that each token's logits are scaled to before anything but the next
              layer sees them, null for none (an option of the released code, there 1 where it is on)
    init_std  standard deviation of the initial maps
    """

    spread: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spread is not None and self.spread <= 0:
            raise ValueError(f"spread: got {self.spread}, expected more than 0, or null")
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
        if self.map is not None:
            past = affine(ctx.carry[LOGITS], self.map)
            own = _each(own, lambda logits: logits + past[:, : logits.shape[1]])
        return self._scaled(own)._replace(carry={LOGITS: own.raw})

    def _scaled(self, signal: Signal) -> Signal:
        """With the deviation that the description asks for; a token with equal logits keeps them."""
        if self.spec.spread is None:
            return signal
        centred = signal.raw - signal.raw.mean(dim=-1, keepdim=True)
        freedom = max(self.pool.columns - 1, 1)
        deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / freedom**0.5  # unlike std at 0 tokens too
        factor = self.spec.spread / torch.where(deviation > 0, deviation, self.spec.spread)
        return _each(signal, lambda logits: logits * factor)


def _each(signal: Signal, change: Callable[[Tensor], Tensor]) -> Signal:
    """All logits of a signal changed alike; what is one tensor before is one after."""
    raw = change(signal.raw)
    selection, weighing = (raw if old is signal.raw else change(old) for old in (signal.selection, signal.weighing))
    return signal._replace(raw=raw, selection=selection, weighing=weighing)
