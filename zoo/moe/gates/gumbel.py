"""A linear gate whose choices are drawn in training: Gumbel noise on the logits of selection (DeepSpeed-MoE's gates,
arXiv 2201.05596)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.moe.gates.base import Signal
from zoo.moe.gates.linear import LinearGate, LinearGateSpec
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext


@dataclass(frozen=True, kw_only=True)
class GumbelGateSpec(LinearGateSpec):
    """A linear map; in training the k chosen experts are a draw without replacement, each time in proportion to the
    softmax over those that are left. Weights, losses and inference see no noise.

    first   drawn (DeepSpeed's RSample, for one expert) or best: the best expert is taken, the others are drawn
            (its top-2, whose second expert is sampled)
    jitter  no multiplicative noise here: 0
    """

    first: Literal["best", "drawn"] = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jitter:
            raise ValueError(f"jitter: got {self.jitter}, expected 0: choices are noisy already")

    @property
    def noise(self) -> bool:
        return True

    def build(self, dim: int, pool: Pool) -> GumbelGate:
        return GumbelGate(self, dim, pool)


class GumbelGate(LinearGate):
    """See GumbelGateSpec."""

    def __init__(self, spec: GumbelGateSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, dim, pool)
        self.keeps_best = spec.first == "best"

    def signal(self, x: Tensor, ctx: RoutingContext) -> Signal:
        raw = self.logits(x, ctx)
        choice = raw[:, : self.pool.experts]
        if ctx.training and ctx.generator is not None:
            noisy = choice + gumbel(choice, ctx.generator)
            if self.keeps_best:  # the best one is lifted above all draws
                best = choice.argmax(-1, keepdim=True)
                noisy = noisy.scatter(1, best, noisy.amax(-1, keepdim=True) + 1)
            choice = noisy
        return Signal(raw, choice, raw)


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of the standard Gumbel distribution, of the shape, device and type of `like`."""
    uniform = torch.rand(like.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp(min=torch.finfo(torch.float64).tiny))).to(like.device, like.dtype)
