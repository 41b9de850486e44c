"""Blocks wire attention, feed-forward and residuals: `block(x, carry, ctx) -> (x, carry)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone.attention import Attention, AttentionSpec
from zoo.backbone.context import BlockContext, Carry
from zoo.backbone.norm import RMSNorm, modulate
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True)
class Place:
    """Where a block stands: the next free attention slot of the cache and the next MoE layer's index."""

    attention: int
    moe: int
    eps: float
    cond: int


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """The description of a block; `type` names it.

    conditioned  whether the block reads the rows' conditioning
    """

    kind: ClassVar[str] = "block"
    conditioned: ClassVar[bool] = False

    def check(self, dim: int, cond: int) -> None:
        """Raises ValueError("key: ...") where the block does not fit the trunk."""

    def cost(self, dim: int, length: float, cond: int) -> Cost:
        """For a token that sees `length` keys."""
        raise NotImplementedError

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


@dataclass(frozen=True, kw_only=True)
class SequentialSpec(BlockSpec):
    """x + attention(norm(x)), then x + ffn(norm(x)).

    attention  the attention
    ffn        the feed-forward layer: dense or moe
    """

    attention: AttentionSpec
    ffn: FeedForwardSpec

    def check(self, dim: int, cond: int) -> None:
        try:
            self.attention.size(dim)
        except ValueError as error:
            raise ValueError(f"attention.{error}") from error

    def cost(self, dim: int, length: float, cond: int) -> Cost:
        return self.attention.cost(dim, length) + self.ffn.cost(dim) + Cost(2 * dim, 2 * dim, 0)

    def build(self, dim: int, place: Place) -> Sequential:
        return Sequential(self, dim, place)


class Sequential(Block):
    """See SequentialSpec."""

    def __init__(self, spec: SequentialSpec, dim: int, place: Place) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim, eps=place.eps)
        self.attention = Attention(spec.attention, dim, place.attention, place.eps)
        self.ffn_norm = RMSNorm(dim, eps=place.eps)
        self.ffn = spec.ffn.build(dim)
        self.layer = place.moe
        self.noise = isinstance(self.ffn, MoE) and self.ffn.spec.properties().noise

    @property
    def attentions(self) -> list[Attention]:  # type: ignore[override]
        return [self.attention]

    @property
    def moes(self) -> list[MoE]:  # type: ignore[override]
        return [self.ffn] if isinstance(self.ffn, MoE) else []

    def forward(self, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
        x = x + self.attention(self.attention_norm(x), ctx)
        y, carry = self.feed_forward(self.ffn_norm(x), carry, ctx)
        return x + y, carry

    def feed_forward(self, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
        """The feed-forward layer on its normed input; an MoE layer leaves its record in the carry."""
        if not isinstance(self.ffn, MoE):
            return self.ffn(x), carry
        routing = ctx.router_context(self.layer, carry.values, self.noise)
        out = self.ffn(x, routing)
        record = LayerRecord(
            out.routing, out.stats, routing.shape, routing.document, routing.modality, weight=routing.weight
        )
        return out.y, carry.add(record)


@dataclass(frozen=True, kw_only=True)
class AdaLNSpec(SequentialSpec):
    """A sequential block whose norms and residuals follow the rows' conditioning (DiT, arXiv 2212.09748).

    Norm outputs become (1 + scale) x + shift and residual branches are multiplied by a gate, all read from cond by a
    linear map that starts at zero.

    gate  one (branches times 1 + gate: rows without conditioning pass as in a sequential block) or zero (branches times
          gate, adaLN-Zero: every row needs conditioning)
    """

    conditioned: ClassVar[bool] = True

    gate: Literal["one", "zero"] = "one"

    def check(self, dim: int, cond: int) -> None:
        super().check(dim, cond)
        if cond < 1:
            raise ValueError("type: an adaln block needs backbone.cond, the width of the conditioning")

    def cost(self, dim: int, length: float, cond: int) -> Cost:
        """The modulation is computed once per row, not per token: it has parameters and no operations here."""
        modulation = linear_cost(cond, 6 * dim, bias=True)
        return super().cost(dim, length, cond) + Cost(modulation.total, modulation.active, 0)

    def build(self, dim: int, place: Place) -> AdaLN:
        return AdaLN(self, dim, place)


class AdaLN(Sequential):
    """See AdaLNSpec."""

    def __init__(self, spec: AdaLNSpec, dim: int, place: Place) -> None:
        super().__init__(spec, dim, place)
        self.base = 1.0 if spec.gate == "one" else 0.0
        self.modulation = nn.Linear(place.cond, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
        if ctx.cond is None:
            if self.base == 0:
                raise ValueError("cond: missing; an adaln block with gate: zero needs conditioning for every row")
            return super().forward(x, carry, ctx)
        parts = self.modulation(F.silu(ctx.cond.to(x.dtype))).chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = parts
        x = x + (self.base + gate_a)[:, None] * self.attention(modulate(self.attention_norm(x), shift_a, scale_a), ctx)
        y, carry = self.feed_forward(modulate(self.ffn_norm(x), shift_f, scale_f), carry, ctx)
        return x + (self.base + gate_f)[:, None] * y, carry
