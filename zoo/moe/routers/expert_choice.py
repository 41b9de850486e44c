"""Experts choose tokens: each takes its best of every sequence (arXiv 2202.09368), as the data selection of Union of
Experts does (arXiv 2503.02495), or all that pass a threshold that follows the wanted share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.moe.pool import Pool, Properties
from zoo.moe.routers.base import GatedRouter, GatedRouterSpec
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.sequences import ranks, sequences, sums
from zoo.moe.stats import count_slots


@dataclass(frozen=True, kw_only=True)
class ExpertChoiceSpec(GatedRouterSpec):
    """Every expert takes ceil(share * n) of the n real tokens of each sequence (row and document).

    The choice of a token depends on the later ones of its sequence, never on padding or on other sequences. A token
    that no expert takes passes by the routed experts.

    share   part of a sequence that an expert takes, 0 < share <= 1
    select  top (the best tokens) or threshold (all tokens whose score exceeds the expert's threshold, whatever comes
            later; it moves once per optimiser step towards the wanted share)
    offers  a token offers itself to this many experts, its best; null for all
    fill    an expert with fewer offers than its share takes other tokens too (as the released code of Union of
            Experts); top only
    score   softmax (over the experts) or sigmoid of the logits
    weight  score (the weight of a slot is its score times `scale`), unit (the weight is `scale`: the choice alone
            matters and the task loss never reaches the router, as in the released code) or straight_through (the weight
            is `scale`, its gradient that of the score)
    scale   factor on the weights; with softmax scores the number of experts makes the mean weight 1
    rate    how far a threshold moves per optimiser step, for each unit of share it is off
    """

    share: float = 0.5
    select: Literal["top", "threshold"] = "top"
    offers: int | None = None
    fill: bool = False
    score: Literal["softmax", "sigmoid"] = "softmax"
    weight: Literal["score", "unit", "straight_through"] = "score"
    scale: float = 1.0
    rate: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: got {self.share}, expected 0 < share <= 1")
        if self.offers is not None and self.offers < 1:
            raise ValueError(f"offers: got {self.offers}, expected 1 or more")
        if self.fill and self.select == "threshold":
            raise ValueError("fill: a threshold has no number of tokens to fill up to; expected false, or select: top")
        if self.rate < 0:
            raise ValueError(f"rate: got {self.rate}, expected 0 or more")

    def properties(self, pool: Pool) -> Properties:
        top = self.select == "top"
        gradient: Literal["partial", "estimator", "none"] = "partial"  # tokens that nobody takes send none
        if self.weight != "score":
            gradient = "none" if self.weight == "unit" else "estimator"
        return Properties(
            scope="sequence" if top else "token", causal=not top, fixed_k=False, task_gradient=gradient,
            noise=self.gate.noise,
        )  # fmt: skip

    def check(self, pool: Pool) -> None:
        if self.offers is not None and self.offers > pool.experts:
            raise ValueError(f"offers: got {self.offers}, expected at most {pool.experts}, routed and null experts")

    def mean_k(self, pool: Pool) -> float:
        taken = self.share * pool.experts
        return taken if self.fill or self.offers is None else min(taken, float(self.offers))

    def build(self, dim: int, pool: Pool) -> ExpertChoice:
        return (ThresholdChoice if self.select == "threshold" else ExpertChoice)(self, dim, pool)


class ExpertChoice(GatedRouter):
    """See ExpertChoiceSpec, select: top."""

    def __init__(self, spec: ExpertChoiceSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, dim, pool)
        self.spec = spec

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        raw, logits, weighing, carry, update = self.gate(x, ctx)
        if self.pool.shared:  # a softmax runs over all columns
            logits = torch.cat([logits, raw[:, self.pool.experts :]], dim=-1)
        scores = self.eligible(self._scores(logits)[:, : self.pool.experts], ctx)
        scores = scores.masked_fill(~ctx.mask[:, None], -torch.inf)
        offered = self._offered(scores)
        keep = self._take(scores, offered, ctx)
        if not self.spec.fill:
            scores = scores.masked_fill(~offered, -torch.inf)
        gate, shared = self._weights(weighing)
        return Routing.from_mask(
            keep, gate, raw=raw, scores=scores, mask=ctx.mask, shared=shared, carry=carry, update=update
        )

    def _scores(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.spec.score == "sigmoid" else torch.softmax(logits, dim=-1)

    def _offered(self, scores: Tensor) -> Tensor:
        """[T, E] bool: where a token offers itself."""
        can = scores > -torch.inf
        if self.spec.offers is None:
            return can
        best = scores.topk(self.spec.offers, dim=-1).indices
        return torch.zeros_like(can).scatter(1, best, True) & can

    def _take(self, scores: Tensor, offered: Tensor, ctx: RoutingContext) -> Tensor:
        """[T, E] bool: each expert's best tokens of each sequence."""
        sequence = sequences(ctx)
        wanted = (sums(ctx.mask.double(), sequence) * self.spec.share - 1e-9).ceil()[:, None]
        place = ranks(scores.masked_fill(~offered, -torch.inf), sequence)
        keep = (place < wanted) & offered
        if not self.spec.fill:
            return keep
        left = wanted - sums(keep.long(), sequence)
        others = scores.masked_fill(keep, -torch.inf)
        return keep | ((ranks(others, sequence) < left) & (others > -torch.inf))

    def _weights(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """[T, E] what each expert weighs where it is chosen, and [T, Ns]."""
        score = self._scores(raw)
        gate, shared = score[:, : self.pool.experts], score[:, self.pool.experts :]
        if self.spec.weight == "unit":
            gate = torch.ones_like(gate)
        elif self.spec.weight == "straight_through":
            gate = 1 + (gate - gate.detach())
        return gate * self.spec.scale, shared if self.pool.shared else None

    def weigh(self, raw: Tensor, expert: Tensor) -> tuple[Tensor, Tensor | None]:
        gate, shared = self._weights(raw)
        chosen = gate.gather(1, expert.clamp(max=self.pool.experts - 1))
        return torch.where(expert < self.pool.experts, chosen, 0), shared


class ThresholdChoice(ExpertChoice):
    """See ExpertChoiceSpec, select: threshold; threshold [E] is what scores are compared with."""

    threshold: Tensor

    def __init__(self, spec: ExpertChoiceSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, dim, pool)
        start = 1 / pool.columns if spec.score == "softmax" else 0.5
        self.register_buffer("threshold", torch.full((pool.experts,), start, dtype=torch.float32))

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        routing = super().forward(x, ctx)
        taken = count_slots(routing.expert, self.pool.experts)
        return routing.replace(update={**routing.update, "taken": taken, "tokens": ctx.mask.sum()})

    def _take(self, scores: Tensor, offered: Tensor, ctx: RoutingContext) -> Tensor:
        return offered & (scores > self.threshold)

    def update(self, totals: Mapping[str, Tensor]) -> None:
        """An expert that took more than its share raises its threshold."""
        super().update(totals)
        if float(totals["tokens"]):
            off = totals["taken"] / totals["tokens"] - self.spec.share
            self.threshold += (self.spec.rate * off).to(self.threshold)
