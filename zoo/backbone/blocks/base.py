"""The contract of blocks: `block(x, carry, ctx) -> (x, carry)`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor, nn

from zoo.backbone.attention import Attention
from zoo.backbone.context import BlockContext, Carry
from zoo.backbone.norm import NormKind, build_norm
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats
from zoo.spec import Cost


@dataclass(frozen=True)
class Place:
    """Where a block stands: the next free attention slot of the cache and the next MoE layer's index, and what all
    blocks of the trunk share: epsilon and kind of the norms, width of the conditioning."""

    attention: int
    moe: int
    eps: float
    cond: int
    norms: NormKind = "rms"

    def norm(self, dim: int) -> nn.Module:
        """A norm of the trunk's kind."""
        return build_norm(self.norms, dim, self.eps)


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """The description of a block; `type` names it.

    conditioned  whether the block reads the rows' conditioning
    """

    kind: ClassVar[str] = "block"
    conditioned: ClassVar[bool] = False

    def check(self, dim: int, cond: int) -> None:
        """Raises ValueError("key: ...") where the block does not fit the trunk."""

    def cost(self, dim: int, length: float, cond: int, norm: Cost) -> Cost:
        """For a token that sees `length` keys; norm is the cost of one norm of the trunk's kind and width."""
        raise NotImplementedError

    def mixtures(self) -> tuple[tuple[str, MoESpec], ...]:
        """Its MoE layers in the order they run (those of `Block.moes`), each with the key it stands under."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return tuple((name, value) for name, value in values if isinstance(value, MoESpec))

    def build(self, dim: int, place: Place) -> Block:
        """The block."""
        raise NotImplementedError


class Block(nn.Module):
    """`attentions` cache slots and `moes` MoE layers, in the order they run."""

    attentions: list[Attention]
    moes: list[MoE]

    def forward(self, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
        """x [B, S, D] and carry, to the same."""
        raise NotImplementedError


def context_of(moe: MoE, layer: int, carry: Carry, ctx: BlockContext) -> RoutingContext:
    """The routing context of the MoE layer with this index."""
    noise = ctx.seed is not None and moe.spec.properties().noise
    return ctx.router_context(layer, carry.values, noise)


def record(carry: Carry, routing: Routing, stats: Stats, ctx: RoutingContext) -> Carry:
    """The carry with what an MoE layer leaves behind."""
    return carry.add(LayerRecord(routing, stats, ctx.shape, ctx.document, ctx.modality, weight=ctx.weight))


def feed_forward(ffn: nn.Module, layer: int, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
    """A feed-forward layer on its normed input [B, S, D]; an MoE layer (the trunk's number `layer`) leaves its record
    in the carry."""
    if not isinstance(ffn, MoE):
        return ffn(x), carry
    routing = context_of(ffn, layer, carry, ctx)
    out = ffn(x, routing)
    return out.y, record(carry, out.routing, out.stats, routing)
