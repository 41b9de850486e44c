"""Routings of given probabilities or logits, and a rule's loss per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.balance.base import BalanceContext, BalanceSpec, Counts
from zoo.moe.pool import Pool
from zoo.moe.routing import Routing


@pytest.fixture
def chosen() -> Callable[..., Routing]:
    """chosen(probs [T, E], expert [T, K], gate=None): a routing with these probabilities and choices, all real."""

    def make(probs: Any, expert: Any, gate: Tensor | None = None) -> Routing:
        raw = torch.as_tensor(probs, dtype=torch.float64).log()
        index = torch.as_tensor(expert)
        weight = torch.full(index.shape, 1 / index.shape[1], dtype=torch.float64) if gate is None else gate
        mask = torch.ones(len(raw), dtype=torch.bool)
        return Routing(expert=index, gate=weight, raw=raw, scores=raw.detach(), mask=mask)

    return make


@pytest.fixture
def per_token() -> Callable[..., Tensor]:
    """per_token(rule, routing, pool, rows=1, counts=None): the rule's loss over the real tokens, differentiable."""

    def value(
        rule: BalanceSpec, routing: Routing, pool: Pool, rows: int = 1, counts: Sequence[Counts] | None = None
    ) -> Tensor:
        whole = None if counts is None else Counts.unpack(torch.stack([c.pack() for c in counts]).sum(0))
        shape = (rows, len(routing.mask) // rows)
        total = rule.loss(routing, BalanceContext.of(routing, shape, None, whole, pool))
        assert total is not None
        return total / routing.mask.sum()

    return value
