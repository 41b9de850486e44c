"""From all experts to one: Gumbel-softmax over a falling temperature, cut at a threshold, then a hard choice (EvoMoE,
arXiv 2112.14397)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from zoo.moe.gates.gumbel import gumbel
from zoo.moe.gates.temperature import TemperatureSpec
from zoo.moe.pool import Pool, Properties
from zoo.moe.routers.base import GatedRouter, GatedRouterSpec
from zoo.moe.routing import Routing, RoutingContext


def _falling() -> TemperatureSpec:
    return TemperatureSpec(start=2.0, end=0.5, steps=5000, curve="linear")


@dataclass(frozen=True, kw_only=True)
class DenseToSparseSpec(GatedRouterSpec):
    """A token goes to all experts whose g = softmax((l + noise * zeta) / tau) exceeds a threshold, l the gate's logits,
    zeta Gumbel noise (training only), tau falling over the optimiser steps; from step `hard` on to the greatest alone.

    A softmax is dense at any temperature: the threshold makes it sparse, and the hard choice top-1. Every phase fills
    slots of one number, E, so that a compiled step serves them all. Where the step is not known (evaluation, decoding)
    the schedules have ended. Nothing is renormalised after the cut.

    temperature  tau; EvoMoE's translation scripts go from 2 to 0.5 in 5000 steps
    threshold    g of an expert that is skipped
    hard         the step of the hard choice, not before the temperature has ended; null for never (the released code
                 then begins with it)
    noise        factor on zeta in the first step
    noise_end    factor where tau has ended, at most `noise`; it goes there in a straight line, null for no change
    weights      noise_free (softmax(l), so that the chosen do not sum to 1; as the released code) or gumbel (g itself;
                 losses then see l / tau)
    """

    temperature: TemperatureSpec = field(default_factory=_falling)
    threshold: float = 0.001
    hard: int | None = 6000
    noise: float = 1.0
    noise_end: float | None = None
    weights: Literal["noise_free", "gumbel"] = "noise_free"

    def __post_init__(self) -> None:
        if self.temperature.learn:
            raise ValueError("temperature.learn: it shapes the choice, which has no gradient; expected false")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold: got {self.threshold}, expected 0 <= threshold < 1")
        falls = self.temperature.end is not None
        least = self.temperature.steps if falls else 0
        if self.hard is not None and self.hard < least:
            raise ValueError(
                f"hard: got {self.hard}, expected at least {least}: the temperature is still falling before"
            )
        if self.noise < 0:
            raise ValueError(f"noise: got {self.noise}, expected 0 or more")
        if self.noise_end is not None and not 0 <= self.noise_end <= self.noise:
            raise ValueError(f"noise_end: got {self.noise_end}, expected 0..{self.noise} (noise), or null")
        if self.noise_end is not None and not falls:
            raise ValueError("noise_end: it ends with the temperature, which has no end; expected null")

    def properties(self, pool: Pool) -> Properties:
        # a zero expert alone answers 0 whatever it weighs
        silent = pool.null.zero > 0 and not pool.shared
        noise = self.gate.noise or self.noise > 0
        return Properties(noise=noise, fixed_k=False, task_gradient="partial" if silent else "exact")

    def check(self, pool: Pool) -> None:
        if self.threshold * pool.experts >= 1:
            raise ValueError(
                f"threshold: got {self.threshold}, expected less than 1 / {pool.experts}: an undecided router would "
                "choose nobody"
            )

    def mean_k(self, pool: Pool) -> float:
        """Of the last phase, at equal scores."""
        return float(pool.experts if self.hard is None else 1)

    def build(self, dim: int, pool: Pool) -> DenseToSparse:
        return DenseToSparse(self, dim, pool)


class DenseToSparse(GatedRouter):
    """See DenseToSparseSpec."""

    def __init__(self, spec: DenseToSparseSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, dim, pool)
        self.spec = spec
        self.temperature = spec.temperature.build()

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        raw, logits, weighing, carry, update = self.gate(x, ctx)
        tau, zeta = self.temperature(ctx.step), self._zeta(logits, ctx)
        noisy = logits + zeta
        if ctx.exclude is not None:  # g is a share of what may be chosen
            noisy = noisy.masked_fill(ctx.exclude, -torch.inf)
        scores = self.eligible(self._share(noisy, weighing, tau)[:, : self.pool.experts], ctx)
        keep = self._keep(scores, ctx.step) & (scores > -torch.inf) & ctx.mask[:, None]
        if self.spec.weights == "gumbel":
            raw = raw / tau
            weight = self._share(weighing[:, : self.pool.experts] + zeta, weighing, tau)
        else:
            weight = torch.softmax(weighing, dim=-1)
        shared = weight[:, self.pool.experts :] if self.pool.shared else None
        return Routing.from_mask(
            keep, weight[:, : self.pool.experts], raw=raw.to(weight.dtype), scores=scores, mask=ctx.mask, shared=shared,
            carry=carry, update=update,
        )  # fmt: skip

    def _share(self, logits: Tensor, weighing: Tensor, tau: Tensor | float) -> Tensor:
        """[T, E] -> [T, E + Ns]: the softmax at a temperature, shared columns as they are weighed."""
        columns = torch.cat([logits, weighing[:, self.pool.experts :]], dim=-1) if self.pool.shared else logits
        return torch.softmax((columns / tau).to(columns.dtype), dim=-1)

    def _zeta(self, logits: Tensor, ctx: RoutingContext) -> Tensor | float:
        """The noise at this step."""
        spec = self.spec
        if not spec.noise or not ctx.training or ctx.generator is None:
            return 0.0
        drawn, factor = gumbel(logits, ctx.generator), spec.noise
        if spec.noise_end is None:
            return factor * drawn
        if ctx.step is None:
            return spec.noise_end * drawn
        done = (ctx.step.to(drawn.dtype) / spec.temperature.steps).clamp(max=1)
        return (factor + done * (spec.noise_end - factor)) * drawn

    def _keep(self, scores: Tensor, step: Tensor | None) -> Tensor:
        """[T, E] bool: the experts of the phase that the step is in, the best in all of them."""
        best = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.argmax(-1, keepdim=True), True)
        hard = self.spec.hard
        if hard is None or step is None:
            return best if hard is not None else best | (scores > self.spec.threshold)
        return best | ((scores > self.spec.threshold) & (step < hard))

    def weigh(self, raw: Tensor, expert: Tensor) -> tuple[Tensor, Tensor | None]:
        """The softmax over all columns; with weights: gumbel that of l / tau, which `raw` then is."""
        share, experts = torch.softmax(raw, dim=-1), self.pool.experts
        chosen = share.gather(1, expert.clamp(max=experts - 1))
        return torch.where(expert < experts, chosen, 0), share[:, experts:] if self.pool.shared else None
