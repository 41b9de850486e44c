"""Expanded drop: idle experts of a token's own device take up what overloaded ones refuse (arXiv 2503.05066)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.moe.policies.limit import LimitSpec
from zoo.moe.pool import Pool
from zoo.moe.routers.base import Router
from zoo.moe.routing import Routing, RoutingContext


@dataclass(frozen=True, kw_only=True)
class RerouteSpec(LimitSpec):
    """A token queues at the experts it chose and at all routed experts of its device; what exceeds their capacity is
    dropped. It may end with more or fewer experts than the router gave it, all weighed by the router's own rule.

    A token's device is the one that holds `ctx.local_experts` where that is set; in one process row b of the batch
    stands for device b modulo `devices`. With devices: 1 every expert is local, and all are filled to the brim (expert
    choice). Experts that were not eligible for the token (excluded, outside its groups) stay out of reach.
    Has only the keys that every capacity policy has.
    """

    def candidates(self, routing: Routing, pool: Pool, ctx: RoutingContext) -> Routing:
        """E slots per token: its own choice and its local experts, the best scored first."""
        own = torch.zeros(len(routing.mask), pool.experts + 1, dtype=torch.bool, device=routing.mask.device)
        own = own.scatter(1, routing.expert, True)[:, :-1]
        keep = own | (self._local(routing, pool, ctx) & (routing.scores > -torch.inf) & routing.mask[:, None])
        if ctx.exclude is not None:
            keep = keep & ~ctx.exclude
        wide = Routing.from_mask(keep, routing.scores, raw=routing.raw, scores=routing.scores, mask=routing.mask)
        return routing.replace(expert=wide.expert, gate=torch.zeros_like(wide.gate), chosen=routing.selected)

    def _local(self, routing: Routing, pool: Pool, ctx: RoutingContext) -> Tensor:
        """[T, E] (or [1, E]) the routed experts of each token's device."""
        place = routing.mask.device
        if ctx.local_experts is not None:
            here = torch.zeros(1, pool.experts, dtype=torch.bool, device=place)
            here[:, ctx.local_experts.to(place)] = True
            here[:, pool.routed :] = False
            return here
        rows, length = ctx.shape
        device = (torch.arange(rows, device=place) % self.devices).repeat_interleave(length)
        expert = torch.arange(pool.experts, device=place)
        block = pool.routed // self.devices
        return (expert // block == device[:, None]) & (expert < pool.routed)

    def drop(self, routing: Routing, keep: Tensor, router: Router) -> Routing:
        """The candidates within capacity, weighed by the router."""
        expert = routing.expert.masked_fill(~keep, routing.experts)
        gate, shared = router.weigh(routing.raw, expert)
        return routing.replace(expert=expert, gate=gate, shared=shared)
