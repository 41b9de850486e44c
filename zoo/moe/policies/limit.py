"""Limits: an expert, or a device, serves at most its share of the batch times a factor.

GShard (arXiv 2006.16668), Switch (2101.03961), DeepSpeed-MoE (2201.05596), MoE++ (2410.07348 eq. 8), Capacity-Aware
Inference (2503.05066).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.moe.policies.base import PolicySpec
from zoo.moe.policies.queues import devices_of, draws, order, places
from zoo.moe.pool import Pool, Properties
from zoo.moe.routers.base import Router
from zoo.moe.routing import Routing, RoutingContext


@dataclass(frozen=True, kw_only=True)
class LimitSpec(PolicySpec):
    """What capacity policies share: expert i serves ceil(factor * A * w_i / sum_j w_j) slots, A being what `per` says,
    w tau for routed experts and 1 for null ones. A counts the router's own choice: a second drop changes nothing more.

    factor         capacity over mean load
    minimum        capacity never falls below this
    per            slots (A = the filled slots of all real tokens) or tokens (A = the real tokens: MoE++ eq. 8 to the
                   letter, which at k = 2 drops 45 % and more, and GShard's form at k = 1)
    tau            load of a routed expert over that of a null expert (MoE++), more than 0 and at most 1
    level          whose capacity it is: of each expert, or of each device's routed experts together (n * capacity)
    devices        over how many devices the routed experts are spread, in equal blocks
    priority       who stays: score (highest selection score), position (earliest token), last (latest token), random
                   (drawn in training, and otherwise where `seed` is set; else the earliest token)
    seed           of the random draws outside training
    first_choices  first choices are served before second ones, whatever the priority (DeepSpeed's top-2)
    drop_first     numbers of the modalities in the model whose tokens are dropped before all others
    null_too       whether null experts have a capacity too
    inference      only outside training, and not at a decoding step (rows of one token)
    """

    factor: float = 1.25
    minimum: int = 1
    per: Literal["slots", "tokens"] = "slots"
    tau: float = 1.0
    level: Literal["expert", "device"] = "expert"
    devices: int = 1
    priority: Literal["score", "position", "last", "random"] = "score"
    seed: int | None = None
    first_choices: bool = False
    drop_first: tuple[int, ...] = ()
    null_too: bool = False
    inference: bool = False

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"factor: got {self.factor}, expected more than 0")
        if self.minimum < 0:
            raise ValueError(f"minimum: got {self.minimum}, expected 0 or more")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau: got {self.tau}, expected more than 0 and at most 1")
        if self.devices < 1:
            raise ValueError(f"devices: got {self.devices}, expected 1 or more")
        if any(modality < 0 for modality in self.drop_first):
            raise ValueError(f"drop_first: got {list(self.drop_first)}, expected numbers of modalities, 0 or more")
        if self.seed is not None and self.priority != "random":
            raise ValueError(f"seed: belongs to priority random, not to {self.priority}")

    def check(self, pool: Pool) -> None:
        if pool.routed % self.devices:
            raise ValueError(f"devices: {pool.routed} routed experts do not divide into {self.devices} equal blocks")

    def properties(self, pool: Pool) -> Properties:
        return Properties(
            scope="batch",
            causal=False,
            fixed_k=False,
            task_gradient="partial",
            noise=self.priority == "random" and not self.inference,
            inference=self.inference,
        )

    def __call__(self, routing: Routing, router: Router, ctx: RoutingContext) -> Routing:
        if self.inference and (ctx.training or ctx.shape[1] <= 1):
            return routing
        wide = self.candidates(routing, router.pool, ctx)
        keep = wide.full & self._served(wide, router.pool, ctx)
        if not self.null_too:
            keep = keep | (wide.full & (wide.expert >= router.pool.routed))
        return self.drop(wide, keep, router)

    def candidates(self, routing: Routing, pool: Pool, ctx: RoutingContext) -> Routing:
        """The routing whose slots queue: the router's own."""
        return routing

    def drop(self, routing: Routing, keep: Tensor, router: Router) -> Routing:
        """The candidates that `keep` [T, K] leaves, with their weights."""
        raise NotImplementedError

    def capacities(self, routing: Routing, pool: Pool) -> Tensor:
        """[E] float64, the capacity of every expert by itself."""
        counted = routing.mask if self.per == "tokens" else routing.selected < routing.experts
        weight = torch.ones(pool.experts, dtype=torch.float64, device=routing.mask.device)
        weight[: pool.routed] = self.tau
        exact = self.factor * counted.sum() * weight / weight.sum()
        # 1e-9 keeps an exact integer from being lifted by floating point
        return (exact - 1e-9).ceil().clamp(min=self.minimum)

    def _served(self, routing: Routing, pool: Pool, ctx: RoutingContext) -> Tensor:
        """[T, K] whether a slot's place in its queue is within the capacity."""
        own = devices_of(pool, self.devices) if self.level == "device" else list(range(pool.experts))
        queues = max(own) + 2  # one more, of capacity 0, for the empty slots
        table = torch.tensor([*own, queues - 1], device=routing.expert.device)
        capacity = self.capacities(routing, pool)
        capacity = capacity.new_zeros(queues).index_add(0, table[:-1], capacity)
        queue = table[routing.expert.flatten()]
        place = places(queue, self._order(routing, ctx), queues)
        return (place < capacity[queue]).view_as(routing.expert)

    def _order(self, routing: Routing, ctx: RoutingContext) -> Tensor:
        """[T * K] the slots, those to be served first in front; ties go to the earlier token."""
        shape = routing.expert.shape
        keys = [self._priority(routing, ctx).flatten()]
        if self.first_choices:
            keys.append(torch.arange(shape[1], device=routing.expert.device).expand(shape).flatten())
        if self.drop_first and ctx.modality is not None:
            late = torch.isin(ctx.modality, torch.tensor(self.drop_first, device=ctx.modality.device))
            keys.append(late[:, None].expand(shape).flatten().long())
        return order(*keys)

    def _priority(self, routing: Routing, ctx: RoutingContext) -> Tensor:
        """[T, K] least first."""
        if self.priority == "score":
            return -routing.scores.detach().gather(1, routing.expert.clamp(max=routing.experts - 1))
        if self.priority == "last":
            tokens = len(routing.mask)
            return torch.arange(tokens, 0, -1, device=routing.mask.device)[:, None].expand(routing.expert.shape)
        generator = self._generator(ctx) if self.priority == "random" else None
        if generator is None:
            return torch.zeros(routing.expert.shape, dtype=torch.int64, device=routing.expert.device)
        return draws(routing.expert.shape, routing.mask, generator)

    def _generator(self, ctx: RoutingContext) -> torch.Generator | None:
        if ctx.training:
            return ctx.generator
        return None if self.seed is None else torch.Generator().manual_seed(self.seed * 1_000_003 + ctx.layer)
