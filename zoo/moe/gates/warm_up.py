"""Stochastic routing warm-up: early in training experts are chosen by noise (Ling, arXiv 2503.05139)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.moe.gates.base import Gate, GateSpec, Signal
from zoo.moe.gates.holding import HoldsGate, HoldsGateSpec
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext


@dataclass(frozen=True, kw_only=True)
class WarmUpGateSpec(HoldsGateSpec, GateSpec):
    """Choice and weights in training see a s + (1 - a) (mu + sigma eps), a = min(step / steps, 1), s the gate's logits
    and eps normal noise per token and expert; losses, traces and evaluation see s.

    mu and sigma are the running mean and deviation of s over real tokens and experts, one number each, so that at step
    0 every expert is as likely. They are 0 and 1 until the first optimiser step is done, and take its figures then. The
    paper states neither their scope nor the number of steps. The gradient passes through a s alone. Without a generator
    of noise, or a step, nothing is warmed up.

    steps     optimiser steps until the noise is gone
    momentum  share of mu and sigma^2 that an optimiser step keeps
    """

    steps: int = 2000
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if isinstance(self.gate, WarmUpGateSpec):
            raise ValueError("gate: expected one that is not warmed up itself")
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected 1 or more")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: got {self.momentum}, expected 0 <= momentum < 1")

    @property
    def core(self) -> GateSpec:
        return self.gate

    @property
    def noise(self) -> bool:
        return True

    def follow(self, previous: GateSpec | None, previous_pool: Pool | None, pool: Pool) -> None:
        self.gate.follow(previous, previous_pool, pool)

    def build(self, dim: int, pool: Pool) -> WarmUpGate:
        return WarmUpGate(self, dim, pool)


class WarmUpGate(HoldsGate, Gate):
    """`gate`, and the running `mean` and `variance` of its logits over `seen` optimiser steps."""

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, spec: WarmUpGateSpec, dim: int, pool: Pool) -> None:
        super().__init__(pool)
        self.spec = spec
        self.gate = spec.gate.build(dim, pool)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("variance", torch.ones((), dtype=torch.float32))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @property
    def core(self) -> Gate:
        return self.gate

    def link(self, earlier: Sequence[Gate]) -> None:
        self.gate.link(earlier)

    def reset_parameters(self) -> None:
        """Draws the gate anew; the statistics start again."""
        super().reset_parameters()
        self.mean.zero_()
        self.variance.fill_(1)
        self.seen.zero_()

    def signal(self, x: Tensor, ctx: RoutingContext) -> Signal:
        own = self.gate.signal(x, ctx)
        if not ctx.training:
            return own
        own = own._replace(update={**own.update, **self._sums(own.raw.detach(), ctx.mask)})
        if ctx.generator is None or ctx.step is None:
            return own
        share = (ctx.step.double() / self.spec.steps).clamp(max=1).to(own.raw.dtype)
        size = (len(x), self.pool.experts)
        drawn = torch.randn(size, generator=ctx.generator, dtype=torch.float32, device=ctx.generator.device)
        noise = self.mean + self.variance.sqrt() * drawn.to(x.device)
        noisy = share * own.selection + ((1 - share) * noise).to(own.raw.dtype)
        return own._replace(selection=noisy, weighing=torch.cat([noisy, own.weighing[:, self.pool.experts :]], dim=-1))

    def _sums(self, raw: Tensor, mask: Tensor) -> dict[str, Tensor]:
        logits = torch.where(mask[:, None], raw[:, : self.pool.experts], 0).double()
        return {
            "warm_up.count": mask.sum() * self.pool.experts,
            "warm_up.sum": logits.sum(),
            "warm_up.squares": logits.square().sum(),
        }

    def update(self, totals: Mapping[str, Tensor]) -> None:
        """The running statistics move towards those of the optimiser step."""
        super().update(totals)
        if not float(totals["warm_up.count"]):
            return
        mean = totals["warm_up.sum"] / totals["warm_up.count"]
        variance = (totals["warm_up.squares"] / totals["warm_up.count"] - mean.square()).clamp(min=0)
        kept = self.spec.momentum if int(self.seen) else 0.0
        self.mean.mul_(kept).add_((1 - kept) * mean.to(self.mean))
        self.variance.mul_(kept).add_((1 - kept) * variance.to(self.variance))
        self.seen += 1
