"""The balance contract: a pure function of one layer's routing, or a change of the selection bias.

Convention: f_i is the share of filled slots before policies (sums to 1), P_i the mean probability over real tokens
(sums to 1). A rule returns a *sum over tokens*; whoever optimises divides by the tokens of the whole optimiser step,
so that neither micro-batches nor ranks of unequal size make it a mean of means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zoo.moe.pool import Pool
from zoo.moe.routing import Routing
from zoo.moe.stats import count_slots

Scope = Literal["sequence", "micro", "global", "global_exact"]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was counted of one layer: slots [E] and first choices [E] per expert, before policies, and tokens []."""

    slots: Tensor
    first: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, routing: Routing) -> Counts:
        """The counts of one routing."""
        slots = count_slots(routing.selected, routing.experts)
        first = count_slots(routing.selected[:, :1], routing.experts)
        return cls(slots=slots, first=first, tokens=routing.mask.sum())

    @classmethod
    def unpack(cls, flat: Tensor) -> Counts:
        """The counts in a vector that `pack` made."""
        slots, first = flat[:-1].chunk(2)
        return cls(slots=slots, first=first, tokens=flat[-1])

    def pack(self) -> Tensor:
        """All counts as one vector [2 E + 1], to be summed over ranks."""
        return torch.cat([self.slots, self.first, self.tokens[None]])


@dataclass(frozen=True, kw_only=True)
class BalanceContext:
    """What a rule may know besides the routing.

    segment  [T] int64, the sequence each token belongs to (row and document), numbered 0..segments-1
    segments number of sequences
    counts   counts of the wider scope: of the optimiser step so far over all ranks, this micro-batch included
             (`global`), or of the whole step (`global_exact`); None where there is nothing wider
    pool     what the columns mean
    """

    segment: Tensor
    segments: int
    counts: Counts | None
    pool: Pool

    @classmethod
    def of(
        cls, routing: Routing, shape: tuple[int, int], document: Tensor | None, counts: Counts | None, pool: Pool
    ) -> BalanceContext:
        """The context of one layer's routing of a [B, S] batch."""
        rows, length = shape
        row = torch.arange(rows, device=routing.mask.device).repeat_interleave(length)
        if document is None:
            return cls(segment=row, segments=rows, counts=counts, pool=pool)
        pairs = torch.stack([row, document.reshape(-1)], dim=1)
        found, segment = pairs.unique(dim=0, return_inverse=True)
        return cls(segment=segment, segments=len(found), counts=counts, pool=pool)


@dataclass(frozen=True, kw_only=True)
class BalanceSpec:
    """The description of a rule; `type` names it.

    weight  factor of the loss (or rate of the bias update)
    final   factor at the end of the annealing, None for no annealing
    anneal  optimiser steps over which `weight` goes linearly to `final`
    """

    kind: ClassVar[str] = "balance"
    scope_counts: ClassVar[bool] = False
    needs_bias: ClassVar[bool] = False

    weight: float = 0.01
    final: float | None = None
    anneal: int = 0

    def __post_init__(self) -> None:
        if self.weight < 0 or (self.final is not None and self.final < 0):
            raise ValueError(f"weight: got {self.weight} (final {self.final}), expected 0 or more")
        if (self.final is not None) != (self.anneal > 0):
            raise ValueError(f"anneal: got {self.anneal} with final {self.final}; both or neither must be given")

    def check(self, pool: Pool) -> None:
        """Raises ValueError("key: ...") where the rule cannot work over this pool."""

    def weight_at(self, step: int) -> float:
        """The factor at an optimiser step."""
        if self.final is None:
            return self.weight
        done = min(max(step, 0) / self.anneal, 1.0)
        return self.weight + (self.final - self.weight) * done

    def wider_scope(self) -> Scope | None:
        """`global` or `global_exact` where the rule needs counts beyond its micro-batch."""
        return None

    def loss(self, routing: Routing, ctx: BalanceContext) -> Tensor | None:
        """The unweighted loss as a sum over real tokens; None where the rule is no loss."""
        return None

    def delta(self, counts: Tensor, pool: Pool, step: int = 0) -> Tensor | None:
        """The change of the bias [E] at an optimiser step with these counts [E]; None where the rule is a loss."""
        return None
