"""Top-p routing as Dynamic routing states it: the paper's hand cases and limits (arXiv 2403.07652)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from zoo.moe.layer import MoE
from zoo.moe.pool import Pool
from zoo.moe.routers.top_p import TopPSpec
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import parse

DIM = 8


def context(tokens: int) -> RoutingContext:
    return RoutingContext(shape=(1, tokens), mask=torch.ones(tokens, dtype=torch.bool))


def route(p: float, probability: Tensor, strict: bool = False) -> Routing:
    """The routing of tokens with these probabilities [T, E]."""
    experts = probability.shape[1]
    router = TopPSpec(p=p, normalize="all", strict=strict).build(experts, Pool(routed=experts)).double()
    with torch.no_grad():
        router.get_parameter("gate.weight").copy_(torch.eye(experts))
    routing: Routing = router(probability.double().log(), context(len(probability)))
    return routing


def count(p: float, row: list[float], strict: bool = False) -> int:
    return int(route(p, torch.tensor([row]), strict).full.sum())


@pytest.mark.parametrize(("p", "expected"), [(0.4, 1), (0.49, 1), (0.6, 2), (0.69, 2), (0.75, 3), (1.0, 5)])
def test_the_hand_case(p: float, expected: int) -> None:
    assert count(p, [0.5, 0.2, 0.15, 0.1, 0.05]) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.25, 1), (0.5, 1), (0.75, 2), (0.875, 3), (1.0, 4)])
def test_sums_that_meet_p_exactly_are_enough(p: float, expected: int) -> None:
    """Exact binary fractions."""
    assert count(p, [0.5, 0.25, 0.125, 0.125]) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.25, 1), (0.5, 2), (0.75, 3), (0.875, 4), (1.0, 4)])
def test_the_released_code_asks_for_more_than_p(p: float, expected: int) -> None:
    """One expert more where a sum meets p, and all where no sum exceeds it."""
    assert count(p, [0.5, 0.25, 0.125, 0.125], strict=True) == expected


def test_the_strict_hand_case_and_its_bound() -> None:
    row = [0.5, 0.2, 0.15, 0.1, 0.05]
    assert [count(p, row, strict=True) for p in (0.4, 0.51, 0.71, 1.0)] == [1, 2, 3, 5]
    pool = Pool(routed=16)
    assert [TopPSpec(p=p, strict=True).slots(pool) for p in (0.4, 0.5, 1.0)] == [7, 9, 16]
    assert [TopPSpec(p=p).slots(pool) for p in (0.4, 0.5, 1.0)] == [7, 8, 16]
    assert count(0.5, [1 / 16] * 16) == 8 and count(0.5, [1 / 16] * 16, strict=True) == 9
    assert TopPSpec(p=0.5, strict=True).mean_k(pool) == 9


def test_equal_probabilities_fill_seven_of_sixteen() -> None:
    assert count(0.4, [1 / 16] * 16) == 7


def layer(p: float) -> MoE:
    router = {"type": "top_p", "p": p, "normalize": "all"}
    made = MoE(
        parse(MoESpec, {"routed": 5, "experts": {"type": "swiglu", "hidden": 6}, "router": router}), DIM
    ).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def states(tokens: int = 20) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mixture(moe: MoE, x: Tensor, weight: Tensor) -> Tensor:
    """sum_e weight_e E_e(x), each expert asked by a routing of its own."""
    whole = moe.route(x, context(len(x)))
    total = torch.zeros_like(x)
    for expert in range(5):
        chosen = torch.full((len(x), 1), expert)
        one = whole.replace(expert=chosen, gate=weight[:, expert : expert + 1])
        total = total + moe.finish(moe.start(x, one, context(len(x))))
    return total


def test_p_of_one_is_the_dense_mixture() -> None:
    moe, x = layer(1.0), states()
    probability = (x @ moe.router.get_parameter("gate.weight").T).softmax(-1)
    torch.testing.assert_close(moe(x, context(20)).y, mixture(moe, x, probability), rtol=1e-12, atol=1e-12)


def test_a_small_p_is_the_best_expert_weighed_by_its_probability() -> None:
    moe, x = layer(1e-9), states()
    probability = (x @ moe.router.get_parameter("gate.weight").T).softmax(-1)
    out = moe(x, context(20))
    best = probability.max(-1)
    assert torch.equal(out.routing.expert[:, 0], best.indices) and int(out.routing.full.sum()) == 20
    torch.testing.assert_close(out.routing.gate[:, 0], best.values)
    (found,) = torch.autograd.grad(out.y.sum(), [moe.router.get_parameter("gate.weight")])
    assert bool(found.any()), "one expert still sends a task gradient"


def chosen(p: float, probability: Tensor) -> Tensor:
    """[T, E] bool."""
    routing = route(p, probability)
    return torch.zeros(len(probability), routing.experts + 1).scatter(1, routing.expert, 1.0)[:, :-1] > 0


def test_sets_grow_with_p_and_follow_a_permutation() -> None:
    probability = states(30).softmax(-1)
    sets = [chosen(p, probability) for p in (0.2, 0.4, 0.6, 0.9, 1.0)]
    assert all(bool((small <= large).all()) for small, large in itertools.pairwise(sets))
    order = torch.randperm(DIM, generator=torch.Generator().manual_seed(2))
    assert torch.equal(chosen(0.6, probability[:, order]), sets[2][:, order])
