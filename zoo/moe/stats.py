"""Statistics of one layer and step, returned with the output; never a side effect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zoo.moe.pool import Pool
from zoo.moe.routing import Routing


@dataclass(frozen=True)
class Stats:
    """What a layer did to the real (unmasked) tokens of a batch, computed from its routing when it is first asked for.

    All figures are tensors without gradient, so nothing is read from a device.
    """

    routing: Routing
    pool: Pool

    @cached_property
    def load(self) -> Tensor:
        """[E] slots that chose each expert, before policies."""
        return count_slots(self.routing.selected, self.pool.experts)

    @property
    def count(self) -> Tensor:
        """[T] slots that each token filled, before policies; 0 on padding."""
        return (self.routing.selected < self.pool.experts).sum(-1)

    @cached_property
    def tokens(self) -> Tensor:
        """[] real tokens."""
        return self.routing.mask.sum()

    @cached_property
    def kept(self) -> Tensor:
        """[] chosen slots left after policies; a slot that a policy added was not chosen."""
        if self.routing.chosen is None:
            return self.load.sum()
        chosen, left = self.routing.chosen, self.routing.expert
        return ((chosen[..., None] == left[:, None]).any(-1) & (chosen < self.pool.experts)).sum()

    @cached_property
    def null(self) -> Tensor:
        """[] slots that chose a null expert."""
        return self.load[self.pool.routed :].sum()

    @cached_property
    @torch.no_grad()
    def entropy(self) -> Tensor:
        """[] mean entropy of the softmax over the logits, in nats."""
        logp = torch.log_softmax(self.routing.logits, dim=-1)
        row = -(logp.exp() * logp).sum(-1)
        return torch.where(self.routing.mask, row, 0).sum() / self.tokens.clamp(min=1)

    @property
    def mean_k(self) -> Tensor:
        """Filled slots per token, null experts included."""
        return self.load.sum() / self.tokens.clamp(min=1)

    @property
    def null_share(self) -> Tensor:
        """Share of the filled slots that went to null experts."""
        return self.null / self.load.sum().clamp(min=1)

    @property
    def dropped_share(self) -> Tensor:
        """Share of the filled slots that policies emptied."""
        return 1 - self.kept / self.load.sum().clamp(min=1)

    @property
    def imbalance(self) -> Tensor:
        """Greatest over mean load; 1 is even."""
        return self.load.max() / self.load.float().mean().clamp(min=torch.finfo(torch.float32).tiny)


def count_slots(expert: Tensor, experts: int) -> Tensor:
    """[E] how many of the slots [T, K] hold each expert; empty slots are left out."""
    flat = expert.flatten()
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=flat.device)
    return counts.scatter_add(0, flat, torch.ones_like(flat))[:experts]
