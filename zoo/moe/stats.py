"""Statistics of one layer and step, returned with the output; never a side effect."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.moe.pool import Pool
from zoo.moe.routing import Routing


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a layer did to the real (unmasked) tokens of a batch. All are tensors, so nothing is read from a device.

    load       [E] slots that chose each expert, before policies
    tokens     []  real tokens
    entropy    []  mean entropy of the softmax over the logits, in nats
    kept       []  slots left after policies
    null       []  slots that chose a null expert
    """

    load: Tensor
    tokens: Tensor
    entropy: Tensor
    kept: Tensor
    null: Tensor

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


@torch.no_grad()
def summarize(routing: Routing, pool: Pool) -> Stats:
    """The statistics of a routing; one count and one softmax over [T, E]."""
    load = count_slots(routing.selected, pool.experts)
    tokens = routing.mask.sum()
    logp = torch.log_softmax(routing.logits, dim=-1)
    row = -(logp.exp() * logp).sum(-1)
    entropy = torch.where(routing.mask, row, 0).sum() / tokens.clamp(min=1)
    kept = load.sum() if routing.chosen is None else routing.full.sum()
    return Stats(load=load, tokens=tokens, entropy=entropy, kept=kept, null=load[pool.routed :].sum())
