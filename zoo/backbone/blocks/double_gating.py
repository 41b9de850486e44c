"""A block whose experts answer twice, to an early state and to the current one (DGMoE, the ablation of ScMoE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from zoo.backbone.attention import Attention, AttentionSpec
from zoo.backbone.blocks.base import Block, BlockSpec, Place, context_of, record
from zoo.backbone.context import BlockContext, Carry
from zoo.moe.experts.null import null_cost
from zoo.moe.feed_forward import DenseSpec
from zoo.moe.layer import MoE
from zoo.moe.routing import Routing
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class DoubleGatingSpec(BlockSpec):
    """Sub-layers of attention and a feed-forward network around residuals, the network of the last being an MoE layer
    that answers two states: the one that network reads, and one of the first sub-layer (DGMoE, arXiv 2404.05019).

    Both states choose among the same experts, each with a router of its own, and what a token's early state chose its
    current state may not choose again. Without that, neighbouring states choose alike and one expert does all the work.

    attention  the attention of every sub-layer
    dense      the dense networks of the sub-layers before the last, in order
    moe        the MoE layer; a bias of its output is added once
    source     the early state: the first sub-layer's input, its state after attention, or its output
    """

    attention: AttentionSpec
    dense: tuple[DenseSpec, ...]
    moe: MoESpec
    source: Literal["input", "attention", "output"] = "attention"

    def __post_init__(self) -> None:
        if not all(isinstance(dense, DenseSpec) for dense in self.dense):
            raise ValueError("dense: expected networks of type dense")
        if not isinstance(self.moe, MoESpec):
            raise ValueError("moe: expected a layer of type moe")
        if self.source != "input" and not self.dense:
            raise ValueError(f"source: got {self.source!r} with one sub-layer, expected 'input', or a network in dense")
        pool = self.moe.pool
        chosen = 2 * self.moe.router.mean_k(pool)
        if chosen > pool.experts:
            raise ValueError(f"moe.routed: two states choose {chosen:g} different experts, there are {pool.experts}")

    def check(self, dim: int, cond: int) -> None:
        try:
            self.attention.check(dim)
        except ValueError as error:
            raise ValueError(f"attention.{error}") from error

    def cost(self, dim: int, length: float, cond: int, norm: Cost) -> Cost:
        layers = (self.attention.cost(dim, length) + norm.times(2)).times(len(self.dense) + 1) + norm
        for dense in self.dense:
            layers = layers + dense.cost(dim)
        once, router = self.moe.cost(dim), self.moe.router.cost(dim, self.moe.pool)
        kept = null_cost(dim, self.moe.pool).active + (dim if self.moe.out_bias else 0)
        kept += self.moe.shared.cost(dim).active if self.moe.shared else 0
        total = once.total + router.total
        active = min(2 * once.active - kept, total)  # both choices may fall on the same experts
        return layers + Cost(total, active, 2 * once.flops)

    def mixtures(self) -> tuple[tuple[str, MoESpec], ...]:
        return super().mixtures() * 2

    def build(self, dim: int, place: Place) -> DoubleGating:
        return DoubleGating(self, dim, place)


class DoubleGating(Block):
    """See DoubleGatingSpec. `early` holds the experts, `current` a router and the same experts, unregistered."""

    def __init__(self, spec: DoubleGatingSpec, dim: int, place: Place) -> None:
        super().__init__()
        count = len(spec.dense) + 1
        self.source, self.layer = spec.source, place.moe
        self.attention_norm = nn.ModuleList(place.norm(dim) for _ in range(count))
        self.attention = nn.ModuleList(spec.attention.build(dim, place.attention + i, place.eps) for i in range(count))
        self.ffn_norm = nn.ModuleList(place.norm(dim) for _ in range(count))
        self.dense = nn.ModuleList(dense.build(dim) for dense in spec.dense)
        self.early_norm = place.norm(dim)
        self.early, self.current = cast(MoE, spec.moe.build(dim)), cast(MoE, spec.moe.build(dim))
        share_(self.early, self.current)

    @property
    def attentions(self) -> list[Attention]:  # type: ignore[override]
        return cast(list[Attention], list(self.attention))

    @property
    def moes(self) -> list[MoE]:  # type: ignore[override]
        return [self.early, self.current]

    def forward(self, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
        early, last = x, len(self.dense)
        for i, attention in enumerate(self.attention):
            if (i, self.source) == (1, "output"):
                early = x
            x = x + attention(self.attention_norm[i](x), ctx)
            if (i, self.source) == (0, "attention"):
                early = x
            read = self.ffn_norm[i](x)
            if i < last:
                x = x + self.dense[i](read)
        first, routing, carry = self._answer(0, self.early_norm(early), None, carry, ctx)
        second, _, carry = self._answer(1, read, taken(routing), carry, ctx)
        return x + first + second, carry

    def _answer(
        self, number: int, x: Tensor, exclude: Tensor | None, carry: Carry, ctx: BlockContext
    ) -> tuple[Tensor, Routing, Carry]:
        """What the experts answer to a normed state x [B, S, D], how it was routed, and the carry with its record."""
        moe = self.moes[number]
        routing_ctx, flat = context_of(moe, self.layer + number, carry, ctx), x.flatten(0, 1)
        routing = moe.route(flat, routing_ctx, exclude)
        y = moe.finish(moe.start(flat, routing, routing_ctx))
        y = y if moe.shared_experts is None else y + moe.shared(flat, routing)
        return y.view_as(x), routing, record(carry, routing, Stats(routing, moe.pool), routing_ctx)


def share_(owner: MoE, other: MoE) -> None:
    """Makes the other layer use the owner's experts. They stay the owner's alone for everything that goes through
    parameters and modules, and its output bias is the only one."""
    for name in ("experts", "null_experts", "shared_experts"):
        module = getattr(owner, name)
        if module is not None:
            delattr(other, name)
            other.__dict__[name] = module
    other.out_bias = None


def taken(routing: Routing) -> Tensor:
    """[T, E] bool: the experts that each token chose, before policies."""
    wide = torch.zeros(len(routing.mask), routing.experts + 1, dtype=torch.bool, device=routing.mask.device)
    return wide.scatter(1, routing.selected, True)[:, : routing.experts]
