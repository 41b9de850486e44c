"""The policy contract: a routing in, an edited routing out, weights through the router's own `weigh`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zoo.moe.pool import Pool, Properties
from zoo.moe.routers.base import Router
from zoo.moe.routing import Routing, RoutingContext


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """The description of a policy; `type` names it. A policy holds no state: the spec is called."""

    kind: ClassVar[str] = "policy"

    def properties(self, pool: Pool) -> Properties:
        """What the policy promises."""
        raise NotImplementedError

    def check(self, pool: Pool) -> None:
        """Raises ValueError("key: ...") where the policy cannot work over this pool."""

    def __call__(self, routing: Routing, router: Router, ctx: RoutingContext) -> Routing:
        """The edited routing. `routing.chosen` keeps the router's own choice."""
        raise NotImplementedError


def keep_slots(routing: Routing, keep: Tensor, router: Router, reweigh: bool) -> Routing:
    """Empties the slots where keep [T, K] is False; weights are computed anew over the survivors, or kept."""
    expert = routing.expert.masked_fill(~keep, routing.experts)
    gate, shared = router.weigh(routing.raw, expert) if reweigh else (routing.gate * keep, routing.shared)
    return routing.replace(expert=expert, gate=gate, shared=shared, chosen=routing.selected)
