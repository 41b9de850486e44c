"""The switch balance loss E * sum_i f_i P_i in its published forms.

Switch (arXiv 2101.03961 eq. 4), EvoMoE (2112.14397), DeepSeekMoE (2401.06066 eq. 12-17), DeepSeek-V2 (2405.04434),
MoE++ (2410.07348 eq. 7), DeepSeek-V3 (2412.19437), global batch (2501.11873), Pangu (2505.21411), LongCat-Flash
(2509.01322 eq. 3-5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.moe.balance.base import BalanceContext, BalanceSpec, Scope, check_routed_share, target_load
from zoo.moe.pool import Pool
from zoo.moe.routing import Routing


@dataclass(frozen=True, kw_only=True)
class SwitchSpec(BalanceSpec):
    """factor * sum_g eta_g f_g P_g / target_g over experts or groups of them, the target being 1 / E where nothing else
    is said; 1 at the target load. f and P count a token as often as its weight says, and where a mean is over tokens it
    divides by the sum of their weights.

    scope        where f and P are taken: sequence, micro (this micro-batch), global (f over the ranks and, as far as it
                 has come, over the optimiser step), global_exact (f counted over the whole step first)
    count        what f counts: slots (share of the filled slots), tokens (selections per token, sums to the mean k),
                 first (the first choice alone), best (as slots, of the highest noise-free logits without selection bias
                 and group limits: DeepSeek-V3's own form)
    probability  what P averages: full (softmax over all), selected (softmax over the chosen), gate (the weights used),
                 local (softmax within each of `groups`, over their number; f and P then stay per expert: Pangu's
                 ablation)
    score        softmax | sigmoid (scores divided by their sum)
    groups       f and P are summed over this many equal groups of routed experts first (device-level balance); 1 is off
    once         a token counts once in a group, however many of its slots lie there (DeepSeek-V2's communication loss)
    routed_share  share of all slots that the routed experts together should get (LongCat-Flash's K_e / K), the null
                  experts getting the rest; over groups they are one more group. None for an even load
    null_weight  eta of null experts; MoE++'s tau puts their load at 1 / tau of a routed expert's
    factor       constant factor
    """

    scope_counts = True

    scope: Scope = "micro"
    count: Literal["slots", "tokens", "first", "best"] = "slots"
    probability: Literal["full", "selected", "gate", "local"] = "full"
    score: Literal["softmax", "sigmoid"] = "softmax"
    groups: int = 1
    once: bool = False
    routed_share: float | None = None
    null_weight: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1:
            raise ValueError(f"groups: got {self.groups}, expected 1 or more")
        if self.null_weight <= 0:
            raise ValueError(f"null_weight: got {self.null_weight}, expected more than 0")
        check_routed_share(self.routed_share)
        if self.wider_scope() and (self.count == "best" or self.once):
            key = "once" if self.once else "count"
            raise ValueError(f"{key}: not counted beyond a micro-batch; expected scope: sequence or micro")

    def check(self, pool: Pool) -> None:
        null, apart = pool.null.count, self.routed_share is not None and self.probability != "local"
        if self.groups > 1 and (pool.routed % self.groups or (null and not apart)):
            raise ValueError(f"groups: {pool.experts} experts do not divide into {self.groups} equal routed groups")
        if self.routed_share is not None and (self.routed_share == 1) != (null == 0):
            raise ValueError("routed_share: without null experts, and only then, the routed ones get all slots")

    def wider_scope(self) -> Scope | None:
        return self.scope if self.scope in ("global", "global_exact") else None

    def group_of(self, pool: Pool) -> list[int]:
        """The group of every expert, itself where there are none; null experts are one more."""
        if self.groups == 1 or self.probability == "local":
            return list(range(pool.experts))
        block = pool.routed // self.groups
        return [min(i // block, self.groups) for i in range(pool.experts)]

    def targets(self, pool: Pool) -> Tensor:
        """[G] float64, the share that each group should get; they sum to 1."""
        return _sum_groups(target_load(pool, self.routed_share), self.group_of(pool))

    def loss(self, routing: Routing, ctx: BalanceContext) -> Tensor:
        weights = ctx.weights(routing, routing.raw.dtype)[:, None]
        probs = torch.where(routing.mask[:, None], self._probabilities(routing), 0) * weights
        probs = torch.cat([probs[:, : ctx.pool.routed], probs[:, ctx.pool.routed :] * self.null_weight], dim=1)
        mass = self._sum(_sum_groups(probs, self.group_of(ctx.pool)), ctx)  # [sequences, G]
        share, _ = self._shares(routing, ctx, weights)
        return self.factor * (share * mass / self.targets(ctx.pool).to(mass)).sum()

    def slope(self, routing: Routing, ctx: BalanceContext) -> Tensor | None:
        if self.probability != "full":
            return None
        share, tokens = self._shares(routing, ctx, ctx.weights(routing, routing.raw.dtype)[:, None])
        found = self.factor * (share * tokens / self.targets(ctx.pool).to(share)).sum(0)[self.group_of(ctx.pool)]
        return torch.cat([found[: ctx.pool.routed], found[ctx.pool.routed :] * self.null_weight])

    def _shares(self, routing: Routing, ctx: BalanceContext, weights: Tensor) -> tuple[Tensor, Tensor]:
        """[sequences, G] f, and [sequences, 1] the tokens of this micro-batch, counted by their weights [T, 1]."""
        groups = self.group_of(ctx.pool)
        hits = _sum_groups(self._hits(routing), groups)
        load = self._sum((hits.clamp(max=1) if self.once else hits) * weights, ctx)
        own = tokens = self._sum(weights, ctx)
        if ctx.counts is not None and self.wider_scope():
            wider = ctx.counts.first if self.count == "first" else ctx.counts.slots
            load, tokens = _sum_groups(wider.to(weights.dtype)[None], groups), ctx.counts.tokens.to(weights.dtype)
        total = tokens if self.count == "tokens" else load.sum(-1, keepdim=True)
        return load / total.clamp(min=torch.finfo(weights.dtype).tiny), own

    def _sum(self, values: Tensor, ctx: BalanceContext) -> Tensor:
        """[T, X] -> [N, X]: sums over the tokens of each sequence, or of all (N = 1)."""
        if self.scope != "sequence":
            return values.sum(0, keepdim=True)
        return values.new_zeros(ctx.segments, values.shape[1]).index_add(0, ctx.segment, values)

    def _hits(self, routing: Routing) -> Tensor:
        """[T, E] how often each expert holds a slot of a token."""
        if self.count == "best":
            filled = (routing.selected < routing.experts).sum(-1, keepdim=True)
            rank = routing.logits.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
            return (rank < filled).long()
        slots = routing.selected[:, :1] if self.count == "first" else routing.selected
        return F.one_hot(slots, routing.experts + 1)[..., : routing.experts].sum(1)

    def _probabilities(self, routing: Routing) -> Tensor:
        """[T, E], rows sum to 1 (to the weights used, for `gate`)."""
        if self.probability == "gate":
            padded = routing.logits.new_zeros(len(routing.mask), routing.experts + 1)
            return padded.scatter_add(1, routing.expert, routing.gate.to(padded.dtype))[:, : routing.experts]
        score = torch.sigmoid(routing.logits) if self.score == "sigmoid" else torch.softmax(routing.logits, dim=-1)
        if self.probability == "selected":
            score = score * (self._hits(routing) > 0)
        rows = score.unflatten(-1, (self.groups, -1)) if self.probability == "local" else score[:, None]
        # the least positive number alone keeps a row of zeros finite: a larger one would let small sigmoids evade it
        rows = rows / rows.sum(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).tiny)
        return rows.flatten(1) / rows.shape[1]


def _sum_groups(values: Tensor, groups: list[int]) -> Tensor:
    """[..., E] -> [..., G]: sums over the experts of each group; the values themselves where each is alone."""
    if groups == list(range(len(groups))):
        return values
    index = torch.tensor(groups, device=values.device)
    return values.new_zeros(*values.shape[:-1], max(groups) + 1).index_add(-1, index, values)
