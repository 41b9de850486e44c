"""Gates with a temperature and an activation under it (Nguyen, Akbarian and Ho, arXiv 2401.13875)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.moe.gates.base import affine
from zoo.moe.gates.drawn import DrawnGate, DrawnGateSpec, undrawn
from zoo.moe.gates.temperature import TemperatureSpec
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import Cost, linear_cost

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "relu": torch.relu,
    "none": lambda score: score,
}


@dataclass(frozen=True, kw_only=True)
class ActivationGateSpec(DrawnGateSpec):
    """logits = (activation(W x) + b) / tau.

    With `none` or relu a learned tau is redundant: weights, bias and tau times any c > 0 are the same gate. Bounded
    activations bound how sure the router can be at a given tau.

    activation   tanh | sigmoid | gelu | relu | none (the linear dense-to-sparse gate)
    temperature  tau
    """

    activation: Literal["tanh", "sigmoid", "gelu", "relu", "none"] = "tanh"
    temperature: TemperatureSpec = field(default_factory=lambda: TemperatureSpec(learn=True))

    def cost(self, dim: int, pool: Pool) -> Cost:
        learned = int(self.temperature.learn)
        return linear_cost(dim, pool.columns, bias=True) + Cost(learned, learned, 0)

    def build(self, dim: int, pool: Pool) -> ActivationGate:
        return ActivationGate(self, dim, pool)


class ActivationGate(DrawnGate):
    """weight [E + Ns, D], bias [E + Ns], and the temperature."""

    spec: ActivationGateSpec

    def __init__(self, spec: ActivationGateSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, pool)
        self.weight = undrawn(pool.columns, dim)
        self.bias = undrawn(pool.columns)
        self.temperature = spec.temperature.build()
        self.reset_parameters()

    def logits(self, x: Tensor, ctx: RoutingContext) -> Tensor:
        score = ACTIVATIONS[self.spec.activation](affine(x, self.weight))
        return ((score + self.bias) / self.temperature(ctx.step)).to(score.dtype)
