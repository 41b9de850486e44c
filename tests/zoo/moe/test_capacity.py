"""Capacity with drop: the hand case of the sheet, brute force, and its algebra."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.policies.capacity import CapacitySpec
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import Routing, RoutingContext


def drop(
    policy: CapacitySpec, logits: Tensor, k: int = 2, pool: Pool | None = None, **more: Any
) -> tuple[Any, Routing]:
    """The routing of these logits before and after a policy."""
    pool = pool or Pool(routed=logits.shape[1])
    router = TopKSpec(k=k, normalize="all").build(logits.shape[1], pool).double()
    with torch.no_grad():
        router.weight.copy_(torch.eye(logits.shape[1]))
        fields = {"shape": (1, len(logits)), "mask": torch.ones(len(logits), dtype=torch.bool), **more}
        ctx = RoutingContext(**fields)
        before = router(logits, ctx)
        return before, policy(before, router, ctx)


def skewed(tokens: int = 64, experts: int = 6) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(tokens, experts, dtype=torch.float64) + torch.linspace(2, 0, experts).double()


def loads(routing: Routing) -> list[int]:
    return [int((routing.expert == e).sum()) for e in range(routing.experts)]


def test_the_hand_case_four_tokens_two_experts() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64).log()
    before, after = drop(CapacitySpec(factor=1.0, reweigh=False), logits, k=1)
    assert loads(before) == [3, 1]
    assert after.expert.tolist() == [[0], [0], [2], [1]]
    torch.testing.assert_close(after.gate, torch.tensor([[0.9], [0.8], [0.0], [0.7]]).double())
    assert torch.equal(after.selected, before.expert)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.1, 1.5, 2.0])
def test_an_expert_keeps_its_best_scores_and_counts_its_drops(factor: float) -> None:
    before, after = drop(CapacitySpec(factor=factor), skewed())
    capacity = math.ceil(factor * 128 / 6 - 1e-9)
    for expert, (old, new) in enumerate(zip(loads(before), loads(after), strict=True)):
        assert new == min(old, capacity)
        served = (before.expert == expert).any(-1).nonzero().flatten().tolist()
        best = sorted(served, key=lambda t: -float(before.scores[t, expert]))[:capacity]
        assert (after.expert == expert).any(-1).nonzero().flatten().tolist() == sorted(best)


def test_enough_capacity_changes_nothing() -> None:
    before, after = drop(CapacitySpec(factor=3.0), skewed())
    assert torch.equal(after.expert, before.expert)
    torch.testing.assert_close(after.gate, before.gate)


def test_dropping_twice_with_the_same_capacity_changes_nothing_more() -> None:
    logits = skewed()
    _, once = drop(CapacitySpec(factor=1.0), logits)
    policy = CapacitySpec(factor=128 / int(once.full.sum()))  # the same capacity of the survivors
    router = TopKSpec(k=2, normalize="all").build(6, Pool(routed=6)).double()
    twice = policy(once, router, RoutingContext(shape=(1, 64), mask=once.mask))
    assert torch.equal(twice.expert, once.expert)


def test_more_capacity_keeps_all_that_less_kept() -> None:
    logits = skewed()
    kept = [drop(CapacitySpec(factor=f), logits)[1].full for f in (0.5, 0.8, 1.0, 1.3, 2.0)]
    for less, more in itertools.pairwise(kept):
        assert bool((more | ~less).all())


def test_position_keeps_the_earliest() -> None:
    before, after = drop(CapacitySpec(factor=1.0, priority="position"), skewed())
    capacity = math.ceil(128 / 6)
    served = (before.expert == 0).any(-1).nonzero().flatten().tolist()
    assert (after.expert == 0).any(-1).nonzero().flatten().tolist() == served[:capacity]


def test_random_is_fixed_by_the_seed_and_calm_without_training() -> None:
    policy, logits = CapacitySpec(factor=0.7, priority="random"), skewed()

    def kept(seed: int | None, training: bool = True) -> list[list[int]]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        _, after = drop(policy, logits, training=training, generator=generator)
        return after.expert.tolist()

    assert kept(1) == kept(1) != kept(2)
    earliest = drop(CapacitySpec(factor=0.7, priority="position"), logits)[1].expert.tolist()
    assert kept(None) == kept(1, training=False) == earliest


def test_equal_scores_keep_exactly_the_capacity() -> None:
    logits = torch.zeros(12, 3, dtype=torch.float64)
    _, after = drop(CapacitySpec(factor=0.5), logits, k=3)
    assert loads(after) == [6, 6, 6]


def test_padding_counts_for_nothing() -> None:
    logits = skewed(32)
    mask = torch.ones(40, dtype=torch.bool)
    mask[32:] = False
    padded = torch.cat([logits, 5 * torch.ones(8, 6).double()])
    alone = drop(CapacitySpec(factor=0.8), logits)[1]
    beside = drop(CapacitySpec(factor=0.8), padded, mask=mask)[1]
    assert torch.equal(beside.expert[:32], alone.expert)
    assert not bool(beside.full[32:].any())


def test_null_experts_are_free_unless_asked() -> None:
    pool = Pool(routed=4, null=NullSpec(zero=2))
    logits = skewed().flip(1)  # the null experts are the most wanted
    before, free = drop(CapacitySpec(factor=0.5), logits, pool=pool)
    assert loads(free)[4:] == loads(before)[4:]
    _, bound = drop(CapacitySpec(factor=0.5, null_too=True), logits, pool=pool)
    assert max(loads(bound)) <= math.ceil(0.5 * 128 / 6)


def test_survivors_are_weighed_anew_by_the_routers_own_rule() -> None:
    logits = skewed()
    pool = Pool(routed=6)
    router = TopKSpec(k=2).build(6, pool).double()
    with torch.no_grad():
        router.weight.copy_(torch.eye(6))
        ctx = RoutingContext(shape=(1, 64), mask=torch.ones(64, dtype=torch.bool))
        routing = router(logits, ctx)
        after = CapacitySpec(factor=0.7)(routing, router, ctx)
        kept = CapacitySpec(factor=0.7, reweigh=False)(routing, router, ctx)
    some = after.full.any(-1)
    torch.testing.assert_close(after.gate.sum(-1)[some], torch.ones(int(some.sum())).double())
    torch.testing.assert_close(kept.gate, torch.where(kept.full, routing.gate, 0))
    assert not bool(some.all())  # some token lost all: its routed output is zero
