"""Capacity with drop: an expert serves at most its share of the batch times a factor (GShard, Switch, MoE++ eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.moe.policies.base import PolicySpec, keep_slots
from zoo.moe.pool import Pool, Properties
from zoo.moe.routers.base import Router
from zoo.moe.routing import Routing, RoutingContext


@dataclass(frozen=True, kw_only=True)
class CapacitySpec(PolicySpec):
    """Drops what exceeds ceil(factor * A / E) slots of an expert, A being the filled slots of all real tokens.

    factor    capacity over mean load
    minimum   capacity never falls below this
    priority  who stays: score (highest selection score), position (earliest token), random (drawn in training;
              the earliest token otherwise)
    reweigh   weigh the surviving slots anew with the router's own rule; otherwise they keep their weights
    null_too  whether null experts have a capacity too
    """

    factor: float = 1.25
    minimum: int = 1
    priority: Literal["score", "position", "random"] = "score"
    reweigh: bool = True
    null_too: bool = False

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"factor: got {self.factor}, expected more than 0")
        if self.minimum < 0:
            raise ValueError(f"minimum: got {self.minimum}, expected 0 or more")

    def properties(self, pool: Pool) -> Properties:
        return Properties(
            scope="batch", causal=False, fixed_k=False, task_gradient="partial", noise=self.priority == "random"
        )

    def __call__(self, routing: Routing, router: Router, ctx: RoutingContext) -> Routing:
        full = routing.full
        mean = full.sum().double() / routing.experts
        # 1e-9 keeps an exact integer from being lifted by floating point
        capacity = (self.factor * mean - 1e-9).ceil().clamp(min=self.minimum)
        keep = full & (self._rank(routing, ctx) < capacity)
        if not self.null_too:
            keep = keep | (full & (routing.expert >= router.pool.routed))
        return keep_slots(routing, keep, router, self.reweigh)

    def _rank(self, routing: Routing, ctx: RoutingContext) -> Tensor:
        """[T, K] place of each slot in its expert's queue, best first; ties go to the earlier token."""
        expert = routing.expert.flatten()
        order = self._priority(routing, ctx).flatten().argsort(descending=True, stable=True)
        order = order[expert[order].argsort(stable=True)]
        sizes = torch.zeros(routing.experts + 1, dtype=torch.int64, device=expert.device)
        sizes = sizes.scatter_add(0, expert, torch.ones_like(expert))
        start = sizes.cumsum(0) - sizes
        place = torch.arange(len(expert), device=expert.device) - start[expert[order]]
        return torch.empty_like(place).scatter(0, order, place).view_as(routing.expert)

    def _priority(self, routing: Routing, ctx: RoutingContext) -> Tensor:
        if self.priority == "score":
            index = routing.expert.clamp(max=routing.experts - 1)
            return routing.scores.gather(1, index)
        if self.priority == "random" and ctx.training and ctx.generator is not None:
            return torch.rand(routing.expert.shape, generator=ctx.generator).to(routing.expert.device)
        return torch.zeros_like(routing.gate)
