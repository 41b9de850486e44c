"""Attention experts: query and output maps that tokens choose, over keys and values that all of them share.

Mixture of attention heads (arXiv 2210.05144), as in JetMoE (2404.07413); with all experts chosen and top_k's normalize:
all, the two forms of BAM (2408.08274)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from zoo.backbone.attention.base import start_
from zoo.backbone.attention.product import attend
from zoo.backbone.context import BlockContext
from zoo.moe.balance.base import BalanceSpec
from zoo.moe.experts.base import Backend, Experts, ExpertSpec
from zoo.moe.experts.ffn import fan_in_
from zoo.moe.layer import MoE, MoEOutput
from zoo.moe.policies.base import PolicySpec
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routing import Routing, RoutingContext, Rows
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class RoutedAttentionSpec:
    """Softmax attention whose query heads are experts: a token asks with the heads of the experts it chose, and their
    output maps are summed by the router's weights. Keys and values come from all tokens, whatever they chose.

    routed        number of attention experts
    router        how tokens choose
    heads         query heads of one expert
    kv_heads      key and value heads, each shared by heads / kv_heads query heads of every expert; None for heads
    head_dim      size of a head; None for width / heads
    own_keys      each expert has keys and values of its own, as BAM's KV experts; then attention runs for every expert,
                  chosen or not, and the cache is as many times larger
    out_bias      whether the sum of output maps has a bias
    window        a query sees the keys of this many positions up to its own; None for all before it
    policy        edits of the routing, in order
    balance       losses and bias updates that keep experts in use
    allow_future  permits parts whose result for a token depends on later tokens in a causal model
    """

    routed: int
    router: RouterSpec
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    own_keys: bool = False
    out_bias: bool = False
    window: int | None = None
    policy: tuple[PolicySpec, ...] = ()
    balance: tuple[BalanceSpec, ...] = ()
    allow_future: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads: got {self.heads}, expected 1 or more")
        if self.groups < 1 or self.heads % self.groups:
            raise ValueError(f"kv_heads: {self.heads} query heads do not divide over {self.groups} key heads")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim: got {self.head_dim}, expected 1 or more")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: got {self.window}, expected 1 or more, or none")
        self.layer(1)

    @property
    def groups(self) -> int:
        """Key and value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def key_heads(self) -> int:
        """Key and value heads of all experts."""
        return self.groups * (self.routed if self.own_keys else 1)

    def size(self, dim: int) -> int:
        """The head size in a trunk of width `dim`. Raises ValueError where it does not divide, or is odd."""
        if self.head_dim is None and dim % self.heads:
            raise ValueError(f"heads: width {dim} does not divide into {self.heads} heads; set head_dim")
        size = dim // self.heads if self.head_dim is None else self.head_dim
        if size % 2:
            raise ValueError(f"head_dim: got {size}, expected an even number for rotary positions")
        return size

    def rotary(self, dim: int) -> int:
        """How many dimensions of a head are turned by rotary positions: all."""
        return self.size(dim)

    def layer(self, inner: int) -> MoESpec:
        """The experts as an MoE layer of maps to and from `inner` channels: what balance, traces and laws see."""
        return MoESpec(
            routed=self.routed,
            experts=HeadMapsSpec(inner=inner),
            router=self.router,
            policy=self.policy,
            balance=self.balance,
            out_bias=self.out_bias,
            backend="grouped",
            allow_future=self.allow_future,
        )

    def cost(self, dim: int, length: float) -> Cost:
        """For a token that sees `length` keys."""
        size = self.size(dim)
        inner, layer = self.heads * size, self.layer(self.heads * size)
        seen = length if self.window is None else min(length, self.window)
        asked = self.routed if self.own_keys else self.router.mean_k(layer.pool)
        return layer.cost(dim) + linear_cost(dim, 2 * self.key_heads * size) + Cost(0, 0, 4 * inner * seen * asked)

    def build(self, dim: int, index: int) -> RoutedAttention:
        """The module; `index` is its slot in the cache."""
        return RoutedAttention(self, dim, index)


@dataclass(frozen=True, kw_only=True)
class HeadMapsSpec(ExpertSpec):
    """One attention expert's maps.

    inner  channels of its query heads together
    """

    inner: int

    def cost(self, dim: int) -> Cost:
        return linear_cost(dim, self.inner) + linear_cost(self.inner, dim)

    def build(self, dim: int, count: int, backend: Backend) -> HeadMaps:
        return HeadMaps(self, dim, count, backend)


class HeadMaps(Experts):
    """q [R, inner, D] and o [R, D, inner]. Attention stands between the two, so they are called apart."""

    def __init__(self, spec: HeadMapsSpec, dim: int, count: int, backend: Backend) -> None:
        super().__init__(count, dim, backend)
        self.q = nn.Parameter(torch.empty(count, spec.inner, dim))
        self.o = nn.Parameter(torch.empty(count, dim, spec.inner))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all maps anew."""
        fan_in_(self.q)
        fan_in_(self.o)

    def queries(self, rows: Rows) -> Tensor:
        """[N, inner] from rows of states [N, D]."""
        return self.linear(rows.x, self.q, rows.counts)

    def forward(self, rows: Rows, ctx: RoutingContext) -> Tensor:
        """[N, D] from rows of what the heads attended to [N, inner]."""
        return self.linear(rows.x, self.o, rows.counts)


class RoutedAttention(MoE):
    """See RoutedAttentionSpec. An MoE layer to balance, traces and laws, an attention module to the cache.

    index, rotary, window  as in `Attention`
    """

    def __init__(self, spec: RoutedAttentionSpec, dim: int, index: int) -> None:
        size = spec.size(dim)
        super().__init__(spec.layer(spec.heads * size), dim)
        self.heads, self.size = spec.heads, size
        self.index, self.rotary, self.window = index, spec.rotary(dim), spec.window
        self.own_keys = spec.own_keys
        self.k = nn.Linear(dim, spec.key_heads * size, bias=False)
        self.v = nn.Linear(dim, spec.key_heads * size, bias=False)
        start_(self.k)
        start_(self.v)

    def forward(self, x: Tensor, ctx: RoutingContext, block: BlockContext) -> MoEOutput:  # type: ignore[override]
        """x [B, S, D] -> MoEOutput with y [B, S, D]. Every slot of every token is a row of its own between the maps."""
        flat = x.flatten(0, 1)
        routing = self.route(flat, ctx)
        placed = _by_expert(routing) if self.own_keys else routing
        slots = placed.expert.shape[1]
        each = placed.replace(expert=placed.expert.reshape(-1, 1), gate=placed.gate.reshape(-1, 1))
        rows = self.dispatch.gather(flat.repeat_interleave(slots, 0), each)
        query = self.dispatch.combine(self.maps.queries(rows), rows, len(flat) * slots)
        out = self._product(query.view(*x.shape[:2], slots, self.heads, self.size), x, block)
        rows = self.dispatch.gather(out, each)
        y = self.maps.weigh(self.maps(rows, ctx), rows.gate)
        y = self.dispatch.combine(y, replace(rows, token=rows.token // slots), len(flat))
        y = y if self.out_bias is None else y + self.out_bias.to(y.dtype)
        return MoEOutput(y.view_as(x), routing, Stats(routing, self.pool))

    @property
    def maps(self) -> HeadMaps:
        """The experts' maps."""
        return cast(HeadMaps, self.experts)

    def _product(self, query: Tensor, x: Tensor, ctx: BlockContext) -> Tensor:
        """query [B, S, K, H, d] and states x [B, S, D] -> what each slot's heads attended to, [B S K, H d]."""
        rows, length, slots, heads, size = query.shape
        key, value = (linear(x).unflatten(-1, (-1, size)).transpose(1, 2) for linear in (self.k, self.v))
        rope = ctx.rope[self.rotary]
        key = rope.turn(key)
        # heads that share keys stand next to each other: the slots of one head, or the heads of one expert
        first, second = (2, 3) if self.own_keys else (3, 2)
        counts = (slots, heads) if self.own_keys else (heads, slots)
        query = rope.turn(query.permute(0, first, second, 1, 4).flatten(1, 2))
        if ctx.cache is not None:
            key, value = ctx.cache.update(self.index, key, value)
        out = attend(query, key, value.to(query.dtype), ctx.visible[self.window], size**-0.5, None)
        out = out.view(rows, *counts, length, size).permute(0, 3, first - 1, second - 1, 4)
        return out.reshape(rows * length * slots, heads * size)


def _by_expert(routing: Routing) -> Routing:
    """The same choice with a slot for each expert, in their order; those not chosen are empty."""
    experts = routing.experts
    wide = routing.gate.new_zeros(len(routing.expert), experts + 1)
    gate = wide.scatter(1, routing.expert, routing.gate)[:, :experts]
    chosen = torch.zeros_like(wide, dtype=torch.bool).scatter(1, routing.expert, True)[:, :experts]
    ids = torch.arange(experts, device=gate.device)
    return routing.replace(expert=torch.where(chosen, ids, experts), gate=gate)
