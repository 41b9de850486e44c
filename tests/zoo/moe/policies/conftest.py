"""Routings of given logits, whatever gate makes them, before and after a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.policies.base import PolicySpec
from zoo.moe.pool import Pool
from zoo.moe.routers.base import Router
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import Routing, RoutingContext

Drop = Callable[..., tuple[Routing, Routing]]


def build_router(experts: int, k: int, pool: Pool | None = None, **more: Any) -> Router:
    """A top-k router whose weights are the full softmax unless told otherwise."""
    return TopKSpec(k=k, **{"normalize": "all", **more}).build(experts, pool or Pool(routed=experts)).double()


def make_routing(router: Router, logits: Tensor, k: int, mask: Tensor) -> Routing:
    """What a noise-free top-k router over the softmax decides."""
    scores = torch.softmax(logits, dim=-1)
    expert = scores.topk(k, dim=-1).indices.masked_fill(~mask[:, None], logits.shape[1])
    gate, shared = router.weigh(logits, expert)
    return Routing(expert=expert, gate=gate, raw=logits, scores=scores, mask=mask, shared=shared)


@pytest.fixture
def drop() -> Drop:
    """drop(policy, logits, k=2, pool=None, router={}, **ctx): the routing before and after a policy."""

    def run(
        policy: PolicySpec,
        logits: Tensor,
        k: int = 2,
        pool: Pool | None = None,
        router: dict[str, Any] | None = None,
        **more: Any,
    ) -> tuple[Routing, Routing]:
        fields = {"shape": (1, len(logits)), "mask": torch.ones(len(logits), dtype=torch.bool), **more}
        ctx = RoutingContext(**fields)
        built = build_router(logits.shape[1], k, pool, **(router or {}))
        before = make_routing(built, logits, k, ctx.mask)
        return before, policy(before, built, ctx)

    return run


@pytest.fixture
def skewed() -> Callable[..., Tensor]:
    """skewed(tokens, experts): random logits that prefer the first experts."""

    def make(tokens: int = 64, experts: int = 6) -> Tensor:
        torch.manual_seed(0)
        return torch.randn(tokens, experts, dtype=torch.float64) + torch.linspace(2, 0, experts).double()

    return make
