"""The usual block: attention, then a feed-forward layer, each around a residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from zoo.backbone.attention import Attention, AttentionSpec
from zoo.backbone.blocks.base import Block, BlockSpec, Place, feed_forward
from zoo.backbone.context import BlockContext, Carry
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.layer import MoE
from zoo.spec import Cost

Scale = float | tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SequentialSpec(BlockSpec):
    """skip x + residual attention(norm(x)), then the same with the feed-forward layer.

    attention  the attention
    ffn        the feed-forward layer: dense or moe
    norm       where norms stand: before (on a branch's input), after (on its output; OLMo2), both, or stream (on the
               state itself, which branch and skip both read; MiniMax)
    residual   factor on the branches (Granite's residual multiplier): one number, or [attention, ffn]
    skip       factor on the states the branches are added to, likewise
    """

    attention: AttentionSpec
    ffn: FeedForwardSpec
    norm: Literal["before", "after", "both", "stream"] = "before"
    residual: Scale = 1.0
    skip: Scale = 1.0

    def check(self, dim: int, cond: int) -> None:
        try:
            self.attention.check(dim)
        except ValueError as error:
            raise ValueError(f"attention.{error}") from error

    def cost(self, dim: int, length: float, cond: int, norm: Cost) -> Cost:
        norms = norm.times(4 if self.norm == "both" else 2)
        return self.attention.cost(dim, length) + self.ffn.cost(dim) + norms

    def build(self, dim: int, place: Place) -> Sequential:
        return Sequential(self, dim, place)


class Sequential(Block):
    """See SequentialSpec. `attention_norm` and `ffn_norm` stand before the branch or on the stream,
    `attention_post_norm` and `ffn_post_norm` after the branch."""

    def __init__(self, spec: SequentialSpec, dim: int, place: Place) -> None:
        super().__init__()
        before, after = spec.norm != "after", spec.norm in ("after", "both")
        self.attention_norm = place.norm(dim) if before else None
        self.attention = spec.attention.build(dim, place.attention, place.eps)
        self.attention_post_norm = place.norm(dim) if after else None
        self.ffn_norm = place.norm(dim) if before else None
        self.ffn = spec.ffn.build(dim)
        self.ffn_post_norm = place.norm(dim) if after else None
        self.stream = spec.norm == "stream"
        self.residual, self.skip = _pair(spec.residual), _pair(spec.skip)
        self.layer = place.moe

    @property
    def attentions(self) -> list[Attention]:  # type: ignore[override]
        return [self.attention]

    @property
    def moes(self) -> list[MoE]:  # type: ignore[override]
        return [self.ffn] if isinstance(self.ffn, MoE) else []

    def forward(self, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
        state, x = self.enter(0, x)
        x = self.leave(0, x, self.attention(state, ctx))
        state, x = self.enter(1, x)
        y, carry = feed_forward(self.ffn, self.layer, state, carry, ctx)
        return self.leave(1, x, y), carry

    def enter(self, branch: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """What branch 0 (attention) or 1 (feed-forward) reads, and the state it is added to."""
        norm = (self.attention_norm, self.ffn_norm)[branch]
        state = x if norm is None else norm(x)
        return state, state if self.stream else x

    def leave(self, branch: int, x: Tensor, y: Tensor, gate: Tensor | None = None) -> Tensor:
        """The state x after what the branch answered, times a gate that broadcasts with it where there is one."""
        norm = (self.attention_post_norm, self.ffn_post_norm)[branch]
        y = y if norm is None else norm(y)
        y = y if gate is None else gate * y
        return _times(x, self.skip[branch]) + _times(y, self.residual[branch])


def _pair(scale: Scale) -> tuple[float, float]:
    return scale if isinstance(scale, tuple) else (scale, scale)


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor
