"""A block whose attention has routed experts, as its feed-forward layer may (JetMoE, BAM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zoo.backbone.attention import Attention
from zoo.backbone.blocks.base import Block, BlockSpec, Place, context_of, feed_forward, record
from zoo.backbone.blocks.routed_attention import RoutedAttentionSpec
from zoo.backbone.context import BlockContext, Carry
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.layer import MoE
from zoo.moe.spec import MoESpec
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class AttentionExpertsSpec(BlockSpec):
    """x + attention(norm(x)), then x + ffn(norm(x)), where tokens choose the query and output maps of their attention
    (JetMoE, arXiv 2404.07413).

    attention  the routed attention; its router leaves a record before that of the feed-forward layer
    ffn        the feed-forward layer: dense or moe
    parallel   both read the same norm of x, and x takes the sum of their answers (BAM, arXiv 2408.08274)
    """

    attention: RoutedAttentionSpec
    ffn: FeedForwardSpec
    parallel: bool = False

    def check(self, dim: int, cond: int) -> None:
        try:
            self.attention.size(dim)
        except ValueError as error:
            raise ValueError(f"attention.{error}") from error

    def cost(self, dim: int, length: float, cond: int, norm: Cost) -> Cost:
        norms = norm.times(1 if self.parallel else 2)
        return self.attention.cost(dim, length) + self.ffn.cost(dim) + norms

    def mixtures(self) -> tuple[tuple[str, MoESpec], ...]:
        return (("attention", self.attention.layer(1)), *super().mixtures())

    def build(self, dim: int, place: Place) -> AttentionExperts:
        return AttentionExperts(self, dim, place)


class AttentionExperts(Block):
    """See AttentionExpertsSpec."""

    def __init__(self, spec: AttentionExpertsSpec, dim: int, place: Place) -> None:
        super().__init__()
        self.layer = place.moe
        self.attention_norm = place.norm(dim)
        self.attention = spec.attention.build(dim, place.attention)
        self.ffn_norm = None if spec.parallel else place.norm(dim)
        self.ffn = spec.ffn.build(dim)

    @property
    def attentions(self) -> list[Attention]:  # type: ignore[override]
        return [self.attention]  # type: ignore[list-item]  # an attention module in all that the cache asks for

    @property
    def moes(self) -> list[MoE]:  # type: ignore[override]
        return [self.attention, self.ffn] if isinstance(self.ffn, MoE) else [self.attention]

    def forward(self, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
        read = self.attention_norm(x)
        routing = context_of(self.attention, self.layer, carry, ctx)
        out = self.attention(read, routing, ctx)
        carry = record(carry, out.routing, out.stats, routing)
        x = x + out.y
        y, carry = feed_forward(
            self.ffn, self.layer + 1, read if self.ffn_norm is None else self.ffn_norm(x), carry, ctx
        )
        return x + y, carry
