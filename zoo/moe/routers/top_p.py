"""Top-p (nucleus) token choice: as many experts as the router is unsure (arXiv 2403.07652, UniMoE-Audio 2510.13344)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.moe.pool import Pool, Properties
from zoo.moe.routers.base import GatedRouter, GatedRouterSpec, share_of_chosen
from zoo.moe.routers.near_tie import earlier_picks, near_tie
from zoo.moe.routing import Routing, RoutingContext


@dataclass(frozen=True, kw_only=True)
class TopPSpec(GatedRouterSpec):
    """Every token goes to the smallest set of its best experts whose probabilities sum to at least p.

    p          probability mass, 0 < p <= 1; 1 keeps all
    strict     the probabilities must sum to more than p: one expert more where they meet it exactly (the released code
               of dynamic routing)
    max_k      most experts per token; None is the most that a row can need: ceil(p E), strict floor(p E) + 1
    min_k      fewest experts per token
    combine    weights inside the chosen set: prob (proportional to the probability), uniform (1 / k), sparsemixer (a
               pick weighs 1 over its near ties, as in the released UniMoE-Audio; see `near_tie`)
    normalize  selected (the set, and the shared experts the router weighs, share the weight 1) or all (the weights are
               the plain probabilities; combine must be prob)
    near_tie   relative gap below which sparsemixer calls two logits tied, divided by two
    """

    p: float = 0.7
    strict: bool = False
    max_k: int | None = None
    min_k: int = 1
    combine: Literal["prob", "uniform", "sparsemixer"] = "prob"
    normalize: Literal["all", "selected"] = "selected"
    near_tie: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"p: got {self.p}, expected 0 < p <= 1")
        if self.min_k < 1:
            raise ValueError(f"min_k: got {self.min_k}, expected 1 or more")
        if self.max_k is not None and self.max_k < self.min_k:
            raise ValueError(f"max_k: got {self.max_k}, expected at least min_k = {self.min_k}")
        if self.normalize == "all" and self.combine != "prob":
            raise ValueError(f"normalize: 'all' needs combine: prob, got combine: {self.combine}")

    def slots(self, pool: Pool) -> int:
        """K: the most experts a token can fill. The k best of E hold at least k / E, so that `even` always suffices;
        a selection bias or an exclusion breaks that order, so all E are provided there."""
        bound = pool.experts if self.bias or self.p >= 1 else self.even(pool)
        return max(self.min_k, bound if self.max_k is None else min(self.max_k, pool.experts))

    def even(self, pool: Pool) -> int:
        """The experts that equal probabilities need."""
        mass = self.p * pool.experts
        return min(pool.experts, math.floor(mass) + 1 if self.strict else math.ceil(mass))

    def properties(self, pool: Pool) -> Properties:
        # one chosen expert of normalised weight is the constant 1; equal weights never depend on the logits
        weighed = self.normalize == "all" or pool.shared > 0
        exact = weighed or (self.combine == "prob" and self.min_k > 1)
        # zero experts alone answer 0 whatever they weigh, copies of normalised weight answer x
        silent = pool.null.zero >= self.min_k or (self.normalize == "selected" and pool.null.copy >= self.min_k)
        exact = exact and (pool.shared > 0 or not silent)
        gradient: Literal["exact", "partial", "none"] = "exact" if exact else "partial"
        if not weighed and self.combine != "prob":
            gradient = "none"
        return Properties(noise=self.gate.noise, fixed_k=False, task_gradient=gradient)

    def check(self, pool: Pool) -> None:
        for name in ("min_k", "max_k"):
            value = getattr(self, name)
            if value is not None and value > pool.experts:
                raise ValueError(f"{name}: got {value}, expected at most {pool.experts}, routed and null experts")
        if self.properties(pool).task_gradient == "none":
            raise ValueError(
                f"combine: weights of {self.combine!r} do not depend on the logits, so the task loss never reaches the "
                "router; expected combine: prob, or shared experts weighed by the router (shared.gate: router)"
            )
        if self.slots(pool) == 1 and pool.experts > 1 and self.normalize == "selected" and not pool.shared:
            raise ValueError("max_k: one expert of normalised weight 1 leaves the router without task gradient")

    def mean_k(self, pool: Pool) -> float:
        return float(min(self.slots(pool), max(self.min_k, self.even(pool))))

    def build(self, dim: int, pool: Pool) -> TopPRouter:
        return TopPRouter(self, dim, pool)


class TopPRouter(GatedRouter):
    """See TopPSpec."""

    def __init__(self, spec: TopPSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, dim, pool)
        self.spec = spec
        self.slots = spec.slots(pool)

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        raw, logits, weighing, carry, update = self.gate(x, ctx)
        if ctx.exclude is not None:  # p is a share of what may be chosen
            logits = logits.masked_fill(ctx.exclude, -torch.inf)
        probs = torch.softmax(logits, dim=-1)
        scores = self.eligible(probs, ctx)
        slots = self.slots if ctx.exclude is None else self.spec.max_k or self.pool.experts
        best, expert = scores.topk(slots, dim=-1)
        # the mass before each expert; never cumsum - p, which is inexact
        mass = probs.gather(1, expert).cumsum(-1)
        before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)
        rank = torch.arange(slots, device=x.device)
        short = before <= self.spec.p if self.spec.strict else before < self.spec.p
        keep = short | (rank < self.spec.min_k)
        if self.spec.p >= 1:  # a float32 sum may reach 1 early
            keep = torch.ones_like(keep)
        keep = keep & ctx.mask[:, None] & (best > -torch.inf)
        expert = torch.where(keep, expert, self.pool.experts)
        gate, shared = self.weigh(weighing, expert)
        return Routing(
            expert=expert, gate=gate, raw=raw, scores=scores, mask=ctx.mask, shared=shared, carry=carry, update=update
        )

    def weigh(self, raw: Tensor, expert: Tensor) -> tuple[Tensor, Tensor | None]:
        """With shared columns the softmax runs over the chosen and the shared ones (UniMoE-Audio, step 7)."""
        experts = self.pool.experts
        full = expert < experts
        index = expert.clamp(max=experts - 1)
        if self.spec.normalize == "all":
            prob = torch.softmax(raw, dim=-1)
            gate = torch.where(full, prob.gather(1, index), 0)
            return gate, prob[:, experts:] if self.pool.shared else None
        gate, shared = share_of_chosen(raw, expert, self.pool)
        if self.spec.combine != "prob":
            inner = full / full.sum(-1, keepdim=True).clamp(min=1)
            if self.spec.combine == "sparsemixer":
                inner = self._near_tie_weights(raw[:, :experts], index, full)
            gate = gate.sum(-1, keepdim=True) * inner
        return gate, shared if self.pool.shared else None

    def _near_tie_weights(self, logits: Tensor, index: Tensor, full: Tensor) -> Tensor:
        """[T, K] A pick weighs exp(best) / sum exp over the experts not picked before it that nearly tie with it
        (relative gap, so not shift-invariant); then all are divided by their sum + 1e-6 (UniMoE-Audio, steps 4-5)."""
        best = logits.gather(1, index)[..., None]
        rivals = logits[:, None, :]
        _, earlier = earlier_picks(index, full, logits.shape[1])
        tied = near_tie(best, rivals, self.spec.near_tie) & ~earlier
        rival_mass = torch.where(tied, (rivals - best).exp(), 0).sum(-1)
        multiplier = torch.where(full, 1 / rival_mass.clamp(min=1), 0)
        return multiplier / (multiplier.sum(-1, keepdim=True) + 1e-6)
