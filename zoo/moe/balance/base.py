"""The balance contract: a pure function of one layer's routing, or a change of the selection bias.

Convention: f_i is the share of filled slots before policies (sums to 1), P_i the mean probability over real tokens
(sums to 1). A rule returns a *sum over tokens*; whoever optimises divides by the tokens of the whole optimiser step,
so that neither micro-batches nor ranks of unequal size make it a mean of means.

A token may weigh more or less than 1 (`Tokens.weight`): it then counts that often in f, in P and in the sum a rule
returns. Only the divisor of whoever optimises stays the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zoo.moe.pool import Pool
from zoo.moe.routing import Routing
from zoo.moe.stats import count_slots

Scope = Literal["sequence", "micro", "global", "global_exact"]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was counted of one layer: slots [E] and first choices [E] per expert, before policies, and tokens []; in
    float64, each token as often as it weighs."""

    slots: Tensor
    first: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, routing: Routing, weight: Tensor | None = None) -> Counts:
        """The counts of one routing; weight [T] of its tokens, None for 1."""
        chosen, experts = routing.selected, routing.experts
        if weight is None:
            slots, first = count_slots(chosen, experts).double(), count_slots(chosen[:, :1], experts).double()
            return cls(slots=slots, first=first, tokens=routing.mask.sum().double())
        weight = torch.where(routing.mask, weight.detach().double(), 0)
        slots, first = _weighed(chosen, weight, experts), _weighed(chosen[:, :1], weight, experts)
        return cls(slots=slots, first=first, tokens=weight.sum())

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

    shape    (B, S) of the batch
    document [T] int64 where rows are packed
    counts   counts of the wider scope: of the optimiser step so far over all ranks, this micro-batch included
             (`global`), or of the whole step (`global_exact`); None where there is nothing wider
    pool     what the columns mean
    device   of the routing
    weight   [T] how much each token counts, None for 1
    """

    shape: tuple[int, int]
    document: Tensor | None
    counts: Counts | None
    pool: Pool
    device: torch.device
    weight: Tensor | None = None

    @classmethod
    def of(
        cls,
        routing: Routing,
        shape: tuple[int, int],
        document: Tensor | None,
        counts: Counts | None,
        pool: Pool,
        weight: Tensor | None = None,
    ) -> BalanceContext:
        """The context of one layer's routing of a [B, S] batch."""
        device = routing.mask.device
        return cls(shape=shape, document=document, counts=counts, pool=pool, device=device, weight=weight)

    def weights(self, routing: Routing, dtype: torch.dtype) -> Tensor:
        """[T] how much each token counts: 0 where it is masked."""
        if self.weight is None:
            return routing.mask.to(dtype)
        return torch.where(routing.mask, self.weight.detach().to(dtype), 0)

    @property
    def segment(self) -> Tensor:
        """[T] int64, the sequence each token belongs to (row and document), numbered 0..segments-1."""
        return self._sequences[0]

    @property
    def segments(self) -> int:
        """The number of sequences."""
        return self._sequences[1]

    @cached_property
    def _sequences(self) -> tuple[Tensor, int]:
        """Numbered only where a rule asks: counting documents reads from the device."""
        rows, length = self.shape
        row = torch.arange(rows, device=self.device).repeat_interleave(length)
        if self.document is None:
            return row, rows
        pairs = torch.stack([row, self.document.reshape(-1)], dim=1)
        found, segment = pairs.unique(dim=0, return_inverse=True)
        return segment, len(found)


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
        """The loss, before its factor, as a sum over real tokens (each as often as it weighs); None where the rule is
        no loss."""
        return None

    def slope(self, routing: Routing, ctx: BalanceContext) -> Tensor | None:
        """[E] how `loss` changes with P_i, the mean probability of each expert (all tokens' by the same amount), what
        it counts held fixed; None where the rule is no function of P."""
        return None

    def delta(self, counts: Tensor, pool: Pool, step: int = 0) -> Tensor | None:
        """The change of the bias [E] at an optimiser step with these counts [E]; None where the rule is a loss."""
        return None


def check_routed_share(share: float | None) -> None:
    """Raises ValueError where a share of the slots for the routed experts is none."""
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"routed_share: got {share}, expected more than 0 and at most 1")


def target_load(pool: Pool, routed_share: float | None) -> Tensor:
    """[E] float64, the share of slots of each expert: the routed ones get `routed_share` together (None: what an even
    load gives them), the null experts the rest."""
    share = pool.routed / pool.experts if routed_share is None else routed_share
    target = torch.full((pool.experts,), share / pool.routed, dtype=torch.float64)
    if pool.null.count:
        target[pool.routed :] = (1 - share) / pool.null.count
    return target


def _weighed(expert: Tensor, weight: Tensor, experts: int) -> Tensor:
    """[E] the weights [T] of the tokens whose slots [T, K] hold each expert; empty slots are left out."""
    spread = weight[:, None].expand(expert.shape).flatten()
    return weight.new_zeros(experts + 1).index_add(0, expert.flatten(), spread)[:experts]
