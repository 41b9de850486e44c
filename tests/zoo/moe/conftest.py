"""Helpers of the layer's tests: routers with given logits, contexts, layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.layer import MoE
from zoo.moe.pool import Pool
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.spec import MoESpec

Route = Callable[..., Routing]


def context(tokens: int, **more: Any) -> RoutingContext:
    """A context of one row of real tokens."""
    fields = {"shape": (1, tokens), "mask": torch.ones(tokens, dtype=torch.bool), **more}
    return RoutingContext(**fields)


@pytest.fixture
def route() -> Route:
    """route(spec, pool, logits [T, columns], **ctx): the routing a linear router makes of these very logits."""

    def run(spec: RouterSpec, pool: Pool, logits: Tensor, bias: Tensor | None = None, **more: Any) -> Routing:
        router = spec.build(logits.shape[1], pool).to(logits.dtype)
        with torch.no_grad():
            router.gate.weight.copy_(torch.eye(logits.shape[1]))
            if bias is not None:
                assert router.bias is not None
                router.bias.copy_(bias)
            routing: Routing = router(logits, context(len(logits), **more))
        return routing

    return run


@pytest.fixture
def layer() -> Callable[..., MoE]:
    """layer(spec, dim): an MoE layer in float64."""

    def build(spec: MoESpec, dim: int = 8) -> MoE:
        torch.manual_seed(0)
        return MoE(spec, dim).double()

    return build
