"""One choice for a whole sequence: top-k on its mean (expert selection of Union of Experts, arXiv 2503.02495)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoo.moe.pool import Pool, Properties
from zoo.moe.routers.top_k import TopKRouter, TopKSpec
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.sequences import sequences, sums


@dataclass(frozen=True, kw_only=True)
class SequenceChoiceSpec(TopKSpec):
    """Top-k as in `top_k`, on the mean of the real tokens of each sequence (row and document), so that all of them go
    to the same experts with the same weights.

    The published code flattens a sequence of fixed length instead. All keys are those of top_k; a gate that draws
    noise, or looks back at layers where the tokens chose one by one, would part them and is refused.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate.noise or self.gate.carried:
            raise ValueError(
                "gate: expected one without noise that reads its input alone: all tokens of a sequence choose alike"
            )

    def properties(self, pool: Pool) -> Properties:
        return replace(super().properties(pool), scope="sequence", causal=False)

    def build(self, dim: int, pool: Pool) -> SequenceChoice:
        return SequenceChoice(self, dim, pool)


class SequenceChoice(TopKRouter):
    """See SequenceChoiceSpec."""

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        sequence, wide = sequences(ctx), torch.promote_types(x.dtype, torch.float32)
        total = sums(torch.where(ctx.mask[:, None], x.to(wide), 0), sequence)
        count = sums(ctx.mask.to(wide), sequence).clamp(min=1)
        return super().forward(total / count[:, None], ctx)
