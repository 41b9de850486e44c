"""The router contract, and the base of routers that choose by a gate's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modalities.base import Tokens
from modalities.precise import Precise
from zoo.moe.gates.holding import HoldsGate, HoldsGateSpec
from zoo.moe.pool import Pool, Properties
from zoo.moe.routing import Routing, RoutingContext
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """The description of a router; `type` names it."""

    kind: ClassVar[str] = "router"

    def properties(self, pool: Pool) -> Properties:
        """What the router promises over this pool."""
        raise NotImplementedError

    def check(self, pool: Pool) -> None:
        """Raises ValueError("key: ...") where the router cannot choose from this pool."""

    @property
    def carried(self) -> bool:
        """Whether it reads what the router of the MoE layer before left in the carry."""
        return False

    def follow(self, previous: RouterSpec | None, previous_pool: Pool | None, pool: Pool) -> None:
        """Raises ValueError("key: ...") where it cannot stand in the MoE layer after one with that router and pool
        (None in the first MoE layer)."""

    def follow_cost(self, dim: int, pool: Pool) -> Cost:
        """What is added to `cost` (less than nothing for shared parts) in the MoE layers after the first."""
        return Cost()

    def mean_k(self, pool: Pool) -> float:
        """Slots a token fills on average, at equal scores where the number varies."""
        raise NotImplementedError

    def cost(self, dim: int, pool: Pool) -> Cost:
        """Parameters and operations of the router itself."""
        raise NotImplementedError

    def build(self, dim: int, pool: Pool) -> Router:
        """The router of a layer of width `dim`."""
        raise NotImplementedError


class Router(Precise):
    """Chooses experts: `router(x [T, D], ctx) -> Routing`. Its parameters and state stay float32 when
    the model is cast to bfloat16.

    `weigh` is pure and knows only noise-free logits, so that policies can edit a choice and weigh it anew.
    """

    bias: Tensor | None  # selection bias [E], where the router has one; changed once per optimiser step

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.register_buffer("bias", None)

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        """x [T, D] clean (finite) inputs to a Routing; rows where ctx.mask is False choose nothing."""
        raise NotImplementedError

    def weigh(self, raw: Tensor, expert: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights of a choice: raw [T, E + Ns], expert [T, K] (E = empty) -> gate [T, K], shared [T, Ns] or None."""
        raise NotImplementedError

    def begin(self, tokens: Tokens, cache: Any, layer: int) -> dict[str, Tensor]:
        """Once per forward of the trunk, before its first block, for the MoE layer with this index: what all layers
        find in their carry. Nothing by default. Carry and cache.routes are one namespace for all layers, so a router
        that keeps its own value there puts `layer` into the key (and finds it again by `ctx.layer`)."""
        return {}

    @property
    def common(self) -> nn.Module | None:
        """What it holds for the routers of later layers too, used by calling it as a module."""
        return None

    def link(self, earlier: Sequence[Router]) -> None:
        """Once after the trunk is built: the routers of the MoE layers before this one, in order. A part that layers
        share belongs to the first of them and is referenced, unregistered, by the others. Nothing by default."""

    def update(self, totals: Mapping[str, Tensor]) -> None:
        """Once per optimiser step, and only then: changes the running statistics. totals are the sums of
        `Routing.update` over the micro-batches and ranks of the step, in float64. Nothing by default."""


def surely(flag: Tensor) -> bool:
    """Whether all of `flag` hold, where asking costs next to nothing (a CPU, eager); False says nothing."""
    return flag.device.type == "cpu" and not torch.compiler.is_compiling() and bool(flag.all())


def empty_slots(expert: Tensor, pool: Pool) -> Tensor | None:
    """[T, K] bool, or None where there surely are none."""
    full = expert < pool.experts
    return None if surely(full) else ~full


def share_of_chosen(raw: Tensor, expert: Tensor, pool: Pool, *, full: bool = False) -> tuple[Tensor, Tensor]:
    """Softmax over the chosen experts and the shared columns: raw [T, E + Ns], expert [T, K] -> [T, K], [T, Ns].

    Taken over these columns alone, so that a choice far below the best logit keeps its precision. full says that no
    slot is empty.
    """
    empty = None if full else empty_slots(expert, pool)
    columns = raw.gather(1, expert if empty is None else expert.clamp(max=pool.experts - 1))
    if empty is not None:
        columns = columns.masked_fill(empty, torch.finfo(raw.dtype).min)  # finite, so a row of them has a gradient
    if pool.shared:
        columns = torch.cat([columns, raw[:, pool.experts :]], dim=-1)
    share, slots = torch.softmax(columns, dim=-1), expert.shape[1]
    chosen = share[:, :slots] if pool.shared else share
    return chosen if empty is None else chosen.masked_fill(empty, 0), share[:, slots:]


@dataclass(frozen=True, kw_only=True)
class GatedRouterSpec(HoldsGateSpec, RouterSpec):
    """A router that chooses by the logits of a gate.

    bias  holds a selection bias per expert, added to the scores for selection only (arXiv 2408.15664)
    """

    bias: bool = False

    def follow(self, previous: RouterSpec | None, previous_pool: Pool | None, pool: Pool) -> None:
        before = previous.gate if isinstance(previous, GatedRouterSpec) else None
        try:
            self.gate.follow(before, previous_pool, pool)
        except ValueError as error:
            raise ValueError(f"gate.{error}") from error


class GatedRouter(HoldsGate, Router):
    """Holds the gate and, where it has one, the selection bias; subclasses choose and weigh."""

    def __init__(self, spec: GatedRouterSpec, dim: int, pool: Pool) -> None:
        super().__init__(pool)
        self.gate = spec.gate.build(dim, pool)
        self.register_buffer("bias", torch.zeros(pool.experts, dtype=torch.float32) if spec.bias else None)

    @property
    def common(self) -> nn.Module | None:
        return self.gate.core.common

    def begin(self, tokens: Tokens, cache: Any, layer: int) -> dict[str, Tensor]:
        return self.gate.core.begin(tokens, cache)

    def link(self, earlier: Sequence[Router]) -> None:
        self.gate.link([router.gate for router in earlier if isinstance(router, GatedRouter)])

    def eligible(self, scores: Tensor, ctx: RoutingContext) -> Tensor:
        """Adds the selection bias and rules out excluded experts (-inf)."""
        if self.bias is not None:
            scores = scores + self.bias
        return scores if ctx.exclude is None else scores.masked_fill(ctx.exclude, -torch.inf)
