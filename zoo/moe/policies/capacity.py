"""Capacity with drop: what exceeds an expert's or a device's capacity is left out (GShard, Switch, MoE++ eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zoo.moe.policies.base import keep_slots
from zoo.moe.policies.limit import LimitSpec
from zoo.moe.routers.base import Router
from zoo.moe.routing import Routing


@dataclass(frozen=True, kw_only=True)
class CapacitySpec(LimitSpec):
    """Drops the slots beyond an expert's capacity; a token that loses all of them gets nothing from routed experts.

    reweigh  weigh the surviving slots anew with the router's own rule; otherwise they keep their weights
    """

    reweigh: bool = True

    def drop(self, routing: Routing, keep: Tensor, router: Router) -> Routing:
        """The router's own slots within capacity."""
        return keep_slots(routing, keep, router, self.reweigh)
