"""Experts that a token may not choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from training.claims.masking import LessRedundantSpec, without_best
from zoo.hub.entries import Entry
from zoo.moe.layer import MoE
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import SpecError, parse


def test_the_next_best_take_their_place() -> None:
    plain = {"routed": 5, "experts": {"type": "swiglu", "hidden": 4}, "router": {"type": "top_k", "k": 2},
             "null_experts": {"zero": 1}}  # fmt: skip
    torch.manual_seed(0)
    layer = MoE(parse(MoESpec, plain), 8)
    with torch.no_grad():
        layer.router.get_parameter("gate.weight")[5].fill_(-9)
    x, ctx = torch.randn(20, 8).abs(), RoutingContext(shape=(1, 20), mask=torch.ones(20, dtype=torch.bool))
    order = layer.route(x, ctx).logits.argsort(-1, descending=True)
    with without_best([layer], 2):
        assert torch.equal(layer(x, ctx).routing.expert, order[:, 2:4])
    assert torch.equal(layer(x, ctx).routing.expert, order[:, :2])


def test_a_rise_beside_another(entry: Callable[..., Entry], budget: dict[str, Any]) -> None:
    keys = {"train": budget, "overrides": {"backbone.layers.0.block.ffn.router.k": 2}, "bar": 1}
    same = parse(LessRedundantSpec, {**keys, "bar_other": 1}).check(entry(), progress=False)
    assert same.figure == 0 and not same.holds and "without the 1 best" in same.note
    with pytest.raises(SpecError, match="bar_other: got 0"):
        parse(LessRedundantSpec, {**keys, "bar_other": 0})
