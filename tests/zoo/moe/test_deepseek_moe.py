"""DeepSeekMoE (arXiv 2401.06066) and the choice of V2 and V3 as settings: identities that hold exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zoo.moe.experts.ffn import SwiGLUSpec
from zoo.moe.experts.shared import SharedSpec
from zoo.moe.feed_forward import DenseSpec
from zoo.moe.layer import MoE
from zoo.moe.pool import Pool
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.spec import MoESpec

DIM, HIDDEN = 8, 24
Build = Callable[..., MoE]
Route = Callable[..., Routing]


def context(tokens: int) -> RoutingContext:
    return RoutingContext(shape=(1, tokens), mask=torch.ones(tokens, dtype=torch.bool))


def test_combinations_of_a_fourfold_split() -> None:
    """16 experts, two of them active, against 64 of a quarter of the width, eight active: the same size, more ways."""
    coarse = MoESpec(routed=16, experts=SwiGLUSpec(hidden=4 * HIDDEN), router=TopKSpec(k=2))
    fine = MoESpec(routed=64, experts=SwiGLUSpec(hidden=HIDDEN), router=TopKSpec(k=8))
    sizes = []
    for spec in (coarse, fine):
        cost, router = spec.cost(DIM), spec.router.cost(DIM, spec.pool)
        sizes.append((cost.total - router.total, cost.active - router.active))
    assert sizes[0] == sizes[1]
    assert (math.comb(16, 2), math.comb(64, 8)) == (120, 4_426_165_368)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("shared", [0, 1])
def test_the_slices_of_a_network_are_that_network(m: int, shared: int, layer: Build) -> None:
    """Cut into m experts of which each is used with weight 1, the first `shared` of them as shared ones."""
    torch.manual_seed(1)
    dense, width = DenseSpec(hidden=HIDDEN).build(DIM).double(), HIDDEN // m
    routed = m - shared
    spec = MoESpec(
        routed=routed,
        experts=SwiGLUSpec(hidden=width),
        shared=SharedSpec(count=shared, hidden=width) if shared else None,
        router=TopKSpec(k=routed, normalize="all", scale=routed),  # at equal logits every weight is 1
    )
    moe = layer(spec, DIM)
    weights = dict(dense.named_parameters())
    gate, up = (w.view(m, width, DIM) for w in weights["gate_up"].chunk(2))
    down = weights["down"].view(DIM, m, width).transpose(0, 1)
    with torch.no_grad():
        dict(moe.router.named_parameters())["gate.weight"].zero_()
        experts = dict(moe.experts.named_parameters())
        experts["gate_up"].copy_(torch.cat([gate, up], 1)[shared:])
        experts["down"].copy_(down[shared:])
        if moe.shared_experts is not None:
            moe.shared_experts.gate_up.copy_(torch.cat([gate, up], 1)[0])
            moe.shared_experts.down.copy_(down[0])
    x = torch.randn(9, DIM, dtype=torch.float64)
    torch.testing.assert_close(moe(x, context(9)).y, dense(x), rtol=1e-12, atol=1e-12)


def test_shared_experts_in_one_network_are_their_sum() -> None:
    torch.manual_seed(1)
    fused = SharedSpec(count=3, hidden=5).build(DIM).double()
    x = torch.randn(9, DIM, dtype=torch.float64)
    gate, up = fused.gate_up.chunk(2)
    expected = torch.zeros_like(x)
    for i in range(3):
        rows = slice(5 * i, 5 * i + 5)
        expected += (F.silu(x @ gate[rows].T) * (x @ up[rows].T)) @ fused.down[:, rows].T
    torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)


def test_weights_are_the_softmax_over_routed_experts_alone(layer: Build) -> None:
    """Not divided by their sum, and nothing to do with the shared expert, which has weight 1."""
    router = TopKSpec(k=2, normalize="all")
    spec = MoESpec(routed=5, experts=SwiGLUSpec(hidden=4), router=router, shared=SharedSpec(hidden=4))
    moe = layer(spec, DIM)
    x = torch.randn(9, DIM, dtype=torch.float64)
    routing = moe(x, context(9)).routing
    scores = (x @ dict(moe.router.named_parameters())["gate.weight"].T).softmax(-1)
    torch.testing.assert_close(routing.gate, scores.topk(2).values)
    assert routing.shared is None and bool((routing.gate.sum(-1) < 1).all())


V3: dict[str, Any] = {"k": 4, "score": "sigmoid", "scale": 2.5, "bias": True, "groups": 8, "group_score": "top2"}


def logits() -> torch.Tensor:
    return torch.randn(600, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_all_groups_are_no_limit(route: Route) -> None:
    plain = route(TopKSpec(k=4, score="sigmoid", scale=2.5), Pool(routed=32), logits())
    wide = route(TopKSpec(**V3, top_groups=8), Pool(routed=32), logits())
    assert torch.equal(plain.expert, wide.expert) and torch.equal(plain.gate, wide.gate)


def test_half_of_the_groups_are_a_limit(route: Route) -> None:
    """Even without a bias only about half of the tokens choose as freely."""
    plain = route(TopKSpec(k=4, score="sigmoid"), Pool(routed=32), logits())
    narrow = route(TopKSpec(**V3, top_groups=4), Pool(routed=32), logits())
    agree = (plain.expert.sort(-1).values == narrow.expert.sort(-1).values).all(-1).double().mean()
    assert 0.35 < float(agree) < 0.65


@pytest.mark.parametrize(("groups", "top", "score"), [(1, 1, "max"), (8, 4, "max"), (8, 4, "top2")])
@pytest.mark.parametrize("constant", [3.0, -3.0])
def test_one_constant_on_all_biases_changes_nothing(
    groups: int, top: int, score: Any, constant: float, route: Route
) -> None:
    """Also where biased scores are negative, since groups that were not chosen stand at minus infinity, not at 0."""
    spec = TopKSpec(k=4, score="sigmoid", bias=True, groups=groups, top_groups=top, group_score=score)
    bias = torch.randn(32, generator=torch.Generator().manual_seed(1)) / 8
    found = [route(spec, Pool(routed=32), logits(), bias=bias + c) for c in (0.0, constant)]
    same = (found[0].expert == found[1].expert).all(-1)
    assert int((~same).sum()) <= 1  # the bias is float32: rounding may turn a near tie
    torch.testing.assert_close(found[0].gate[same], found[1].gate[same])


def test_gates_do_not_see_the_bias(route: Route) -> None:
    """huggingface/transformers#41647 mends a release that took them from biased scores."""
    bias = torch.randn(32, generator=torch.Generator().manual_seed(1))
    routing = route(TopKSpec(**V3, top_groups=4), Pool(routed=32), logits(), bias=bias)
    score = logits().sigmoid().gather(1, routing.expert)
    torch.testing.assert_close(routing.gate, 2.5 * score / score.sum(-1, keepdim=True))
