"""Top-k token choice: softmax or sigmoid scores, limited to groups or equal over groups where asked (Mixtral,
DeepSeek-V2/V3, OLMoE, Pangu Pro MoE, ...)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.pool import Pool, Properties
from zoo.moe.routers.base import GatedRouter, GatedRouterSpec, empty_slots, share_of_chosen, surely
from zoo.moe.routing import Routing, RoutingContext
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class TopKSpec(GatedRouterSpec):
    """Every token goes to its k best experts.

    k               experts per token
    score           softmax | sigmoid: the positive score s_i of a logit (exp(l_i) or 1 / (1 + exp(-l_i)))
    normalize       what weights are divided by: all (sum of s over all columns; the plain softmax), selected (sum over
                    the chosen experts and the shared ones the router weighs), none (s itself; sigmoid only)
    scale           factor on the weights of routed and null experts
    expert_scale    a learned factor per expert on its weights as well, 1 at first (router_scale of the released code
                    of Pangu Pro MoE)
    groups          number of equal groups of experts, 1 for none (DeepSeek-V2/V3)
    top_groups      groups a token may choose from
    group_score     a group ranks by its best expert (max) or by the sum of its two best (top2)
    equal_groups    a token takes the k / groups best experts of every group instead, so that devices that hold a group
                    each compute the same number of rows (Pangu Pro MoE, arXiv 2505.21411, whose weights are those of
                    normalize: all); slots then stand by group
    mask_zero       chosen zero experts weigh nothing and stay out of the sum that the others are divided by (the
                    released code of MoE++, arXiv 2410.07348; a token with one other expert then weighs it 1)
    allow_constant  permits k = 1 with weights divided by their sum, so 1 whatever the router says: the task loss never
                    reaches it (public checkpoints have such routers)
    """

    k: int = 2
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: Literal["all", "selected", "none"] = "selected"
    scale: float = 1.0
    expert_scale: bool = False
    groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    equal_groups: bool = False
    mask_zero: bool = False
    allow_constant: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k: got {self.k}, expected 1 or more")
        if self.groups < 1:
            raise ValueError(f"groups: got {self.groups}, expected 1 or more")
        if self.normalize == "none" and self.score == "softmax":
            raise ValueError("normalize: softmax scores have no unnormalised form; expected 'all' or 'selected'")
        if not 1 <= self.top_groups <= self.groups:
            raise ValueError(f"top_groups: got {self.top_groups}, expected 1..{self.groups} (groups)")
        if self.equal_groups and (self.top_groups != 1 or self.group_score != "max"):
            raise ValueError(
                "equal_groups: every group is used, none ranked; expected top_groups and group_score unset"
            )
        if self.equal_groups and self.k % self.groups:
            raise ValueError(f"k: got {self.k}, expected a multiple of {self.groups}, the groups that share it equally")

    def constant(self, pool: Pool) -> bool:
        """Whether all weights are 1, so that the task loss never reaches the router."""
        return self.k == 1 and pool.experts > 1 and self.normalize == "selected" and not pool.shared

    def properties(self, pool: Pool) -> Properties:
        if self.constant(pool):
            return Properties(noise=self.gate.noise, task_gradient="none")
        # zero experts alone answer 0 whatever they weigh, copies of normalised weight answer x
        zeros = self.k - 1 if self.mask_zero and self.normalize == "selected" else self.k
        silent = pool.null.zero >= max(zeros, 1) or (self.normalize == "selected" and pool.null.copy >= self.k)
        return Properties(noise=self.gate.noise, task_gradient="partial" if silent and not pool.shared else "exact")

    def check(self, pool: Pool) -> None:
        if self.k > pool.experts:
            raise ValueError(f"k: got {self.k}, expected at most {pool.experts}, the number of routed and null experts")
        if pool.experts % self.groups:
            raise ValueError(f"groups: {pool.experts} experts do not divide into {self.groups} equal groups")
        per_group = pool.experts // self.groups
        if not self.equal_groups and self.top_groups * per_group < self.k:
            raise ValueError(
                f"top_groups: {self.top_groups} groups of {per_group} experts hold fewer than k = {self.k}"
            )
        if self.group_score == "top2" and self.groups > 1 and per_group < 2:
            raise ValueError(f"group_score: top2 needs two experts in a group, there are {per_group}")
        if self.constant(pool) and not self.allow_constant:
            raise ValueError(
                "normalize: with k = 1 the normalised weight is the constant 1 and the task loss never reaches the "
                "router; expected normalize: all (or none with sigmoid scores), k of 2 and more, or "
                "allow_constant: true"
            )

    def mean_k(self, pool: Pool) -> float:
        return float(self.k)

    def cost(self, dim: int, pool: Pool) -> Cost:
        own = pool.experts if self.expert_scale else 0
        return super().cost(dim, pool) + Cost(own, own, 0)

    def build(self, dim: int, pool: Pool) -> TopKRouter:
        return TopKRouter(self, dim, pool)


class TopKRouter(GatedRouter):
    """See TopKSpec. expert_scale [E] float32, where there is one."""

    def __init__(self, spec: TopKSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, dim, pool)
        self.spec = spec
        self.expert_scale = nn.Parameter(torch.ones(pool.experts, dtype=torch.float32)) if spec.expert_scale else None

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.expert_scale is not None:
            nn.init.ones_(self.expert_scale)

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        raw, logits, weighing, carry, update = self.gate(x, ctx)
        score = self._score(logits)
        scores = self.eligible(score, ctx)
        if self.spec.groups > 1 and not self.spec.equal_groups:
            scores = self._limit_groups(scores)
        best, expert = self._best(scores)
        if ctx.exclude is not None:
            expert = expert.masked_fill(best == -torch.inf, self.pool.experts)
        every = surely(ctx.mask)
        if not every:
            expert = expert.masked_fill(~ctx.mask[:, None], self.pool.experts)
        known = score if logits is weighing else None
        gate, shared = self._weigh(weighing, expert, known, full=every and ctx.exclude is None)
        return Routing(
            expert=expert, gate=gate, raw=raw, scores=scores, mask=ctx.mask, shared=shared, carry=carry, update=update
        )

    def _best(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """[T, k] the best scores and their experts, of all or of each group."""
        if not self.spec.equal_groups:
            best, expert = scores.topk(self.spec.k, dim=-1)
            return best, expert
        best, place = scores.unflatten(-1, (self.spec.groups, -1)).topk(self.spec.k // self.spec.groups, dim=-1)
        first = torch.arange(0, self.pool.experts, self.pool.experts // self.spec.groups, device=scores.device)
        return best.flatten(1), (place + first[:, None]).flatten(1)

    def _limit_groups(self, scores: Tensor) -> Tensor:
        """-inf outside the best `top_groups` groups (arXiv 2405.04434 section 2.2.2, 2412.19437 section 2.1.2), the
        selection bias already added. DeepSeek-V2's code puts 0 there: the same choice, as its scores are positive."""
        grouped = scores.unflatten(-1, (self.spec.groups, -1))
        ranks = grouped.amax(-1) if self.spec.group_score == "max" else grouped.topk(2, dim=-1).values.sum(-1)
        best = ranks.topk(self.spec.top_groups, dim=-1).indices
        keep = torch.zeros_like(ranks, dtype=torch.bool).scatter(1, best, True)
        return grouped.masked_fill(~keep[..., None], -torch.inf).flatten(-2)

    def _score(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.spec.score == "sigmoid" else torch.softmax(logits, dim=-1)

    def weigh(self, raw: Tensor, expert: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._weigh(raw, expert)

    def _weigh(
        self, raw: Tensor, expert: Tensor, score: Tensor | None = None, *, full: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`weigh`, with what is known: the score of raw, and that no slot is empty."""
        if self.spec.mask_zero and self.pool.null.zero:
            first, full = self.pool.first("zero"), False
            zero = (expert >= first) & (expert < first + self.pool.null.zero)
            expert = expert.masked_fill(zero, self.pool.experts)
        shared: Tensor | None
        if self.spec.score == "softmax" and self.spec.normalize == "selected":
            gate, shared = share_of_chosen(raw, expert, self.pool, full=full)
            return self._scaled(gate, expert), shared if self.pool.shared else None
        score = self._score(raw) if score is None else score
        empty = None if full else empty_slots(expert, self.pool)
        gate = score.gather(1, expert if empty is None else expert.clamp(max=self.pool.experts - 1))
        gate = gate if empty is None else gate.masked_fill(empty, 0)
        shared = score[:, self.pool.experts :] if self.pool.shared else None
        total = self._total(score, gate, shared)
        if total is not None:
            gate, shared = gate / total, None if shared is None else shared / total
        return self._scaled(gate, expert), shared

    def _scaled(self, gate: Tensor, expert: Tensor) -> Tensor:
        """gate and expert [T, K] -> the weights with the fixed and the learned factor."""
        gate = gate if self.spec.scale == 1 else gate * self.spec.scale
        if self.expert_scale is None:
            return gate
        return gate * F.pad(self.expert_scale, (0, 1)).to(gate.dtype)[expert]  # an empty slot holds E

    def _total(self, score: Tensor, gate: Tensor, shared: Tensor | None) -> Tensor | None:
        """[T, 1] what weights are divided by; None for 1, which the shares of a softmax sum to."""
        if self.spec.normalize == "selected":
            total = gate.sum(-1, keepdim=True)
            total = total if shared is None else total + shared.sum(-1, keepdim=True)
        elif self.spec.normalize == "all" and self.spec.score == "sigmoid":
            total = score.sum(-1, keepdim=True)
        else:
            return None
        # peers add 1e-20 (DeepSeek-V3) or clamp at 1e-12 (Ernie 4.5): nothing beside a sum of scores in float32
        return total.clamp(min=torch.finfo(total.dtype).tiny)
