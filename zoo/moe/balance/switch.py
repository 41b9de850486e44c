"""The switch balance loss E * sum_i f_i P_i in its published forms (arXiv 2101.03961 eq. 4, 2501.11873, 2410.07348)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.moe.balance.base import BalanceContext, BalanceSpec, Scope
from zoo.moe.pool import Pool
from zoo.moe.routing import Routing


@dataclass(frozen=True, kw_only=True)
class SwitchSpec(BalanceSpec):
    """factor * E * sum_i eta_i f_i P_i; 1 at even load. f and P count a token as often as its weight says, and where a
    mean is over tokens it divides by the sum of their weights.

    scope        where f and P are taken: sequence, micro (this micro-batch), global (f over the ranks and, as far as it
                 has come, over the optimiser step), global_exact (f counted over the whole step first)
    count        what f counts: slots (share of the filled slots), tokens (selections per token, sums to the mean k),
                 first (the first choice alone)
    probability  what P averages: full (softmax over all), selected (softmax over the chosen), gate (the weights used)
    score        softmax | sigmoid (scores divided by their sum)
    groups       f and P are summed over this many equal groups of routed experts first (device-level balance); 1 is off
    null_weight  eta of null experts; MoE++'s tau puts their load at 1 / tau of a routed expert's
    factor       constant factor
    """

    scope_counts = True

    scope: Scope = "micro"
    count: Literal["slots", "tokens", "first"] = "slots"
    probability: Literal["full", "selected", "gate"] = "full"
    score: Literal["softmax", "sigmoid"] = "softmax"
    groups: int = 1
    null_weight: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1:
            raise ValueError(f"groups: got {self.groups}, expected 1 or more")

    def check(self, pool: Pool) -> None:
        if self.groups > 1 and (pool.null.count or pool.routed % self.groups):
            raise ValueError(f"groups: {pool.experts} experts do not divide into {self.groups} equal routed groups")
        if self.null_weight <= 0:
            raise ValueError(f"null_weight: got {self.null_weight}, expected more than 0")

    def wider_scope(self) -> Scope | None:
        return self.scope if self.scope in ("global", "global_exact") else None

    def loss(self, routing: Routing, ctx: BalanceContext) -> Tensor:
        probs = self._probabilities(routing)
        weights = ctx.weights(routing, probs.dtype)[:, None]
        probs, hits = torch.where(routing.mask[:, None], probs, 0) * weights, self._hits(routing) * weights
        mass = self._sum(probs, ctx)  # [G, E], sum over the tokens of a segment
        load = self._sum(hits, ctx)
        tokens = self._sum(weights, ctx)
        if ctx.counts is not None and self.wider_scope():
            wider = ctx.counts.first if self.count == "first" else ctx.counts.slots
            load, tokens = wider.to(probs.dtype)[None], ctx.counts.tokens.to(probs.dtype)
        total = tokens if self.count == "tokens" else load.sum(-1, keepdim=True)
        share = load / total.clamp(min=torch.finfo(probs.dtype).tiny)
        eta = probs.new_ones(probs.shape[1])
        eta[ctx.pool.routed :] = self.null_weight
        terms = self._group(share) * self._group(mass * eta)
        return self.factor * terms.shape[-1] * terms.sum()

    def _sum(self, values: Tensor, ctx: BalanceContext) -> Tensor:
        """[T, X] -> [G, X]: sums over the tokens of each sequence, or of all (G = 1)."""
        if self.scope != "sequence":
            return values.sum(0, keepdim=True)
        return values.new_zeros(ctx.segments, values.shape[1]).index_add(0, ctx.segment, values)

    def _group(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.groups, -1)).sum(-1) if self.groups > 1 else values

    def _hits(self, routing: Routing) -> Tensor:
        """[T, E] how often each expert holds a slot of a token."""
        slots = routing.selected[:, :1] if self.count == "first" else routing.selected
        return F.one_hot(slots, routing.experts + 1)[..., : routing.experts].sum(1)

    def _probabilities(self, routing: Routing) -> Tensor:
        """[T, E], rows sum to 1 (to the weights used, for `gate`)."""
        if self.probability == "gate":
            padded = routing.logits.new_zeros(len(routing.mask), routing.experts + 1)
            return padded.scatter_add(1, routing.expert, routing.gate.to(padded.dtype))[:, : routing.experts]
        score = torch.sigmoid(routing.logits) if self.score == "sigmoid" else torch.softmax(routing.logits, dim=-1)
        if self.probability == "selected":
            score = score * (self._hits(routing) > 0)
        return score / score.sum(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).tiny)
