"""Expanded drop: the sheet's hand case, local sets, loads."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zoo.moe.policies.reroute import RerouteSpec
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routing import Routing
from zoo.moe.stats import Stats

Drop = Callable[..., tuple[Routing, Routing]]
Skewed = Callable[..., Tensor]


def loads(routing: Routing) -> list[int]:
    return [int((routing.expert == e).sum()) for e in range(routing.experts)]


def weights(routing: Routing) -> Tensor:
    """[T, E]."""
    empty = routing.gate.new_zeros(len(routing.mask), routing.experts + 1)
    return empty.scatter_add(1, routing.expert, routing.gate)[:, :-1]


def test_the_hand_case_a_dropped_token_is_served_by_the_idle_expert(drop: Drop) -> None:
    score = [[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]
    before, after = drop(RerouteSpec(factor=1.0), torch.tensor(score, dtype=torch.float64).log(), k=1)
    expected = torch.tensor([[0.9, 0], [0.8, 0], [0, 0.4], [0, 0.7]]).double()
    torch.testing.assert_close(weights(after), expected)
    assert torch.equal(after.selected, before.expert)
    assert float(Stats(after, Pool(routed=2)).dropped_share) == pytest.approx(0.25)


def test_only_experts_of_the_tokens_own_device_are_added(drop: Drop, skewed: Skewed) -> None:
    before, after = drop(RerouteSpec(factor=0.8, devices=3), skewed(), shape=(4, 16))
    device = (torch.arange(4) % 3).repeat_interleave(16)
    added = weights(after) > 0
    added &= ~torch.zeros_like(added).scatter(1, before.expert, True)
    token, expert = added.nonzero().T
    assert len(token) and torch.equal(expert // 2, device[token])
    assert max(loads(after)) <= math.ceil(0.8 * 128 / 6)


def test_local_experts_of_the_rank_come_first(drop: Drop, skewed: Skewed) -> None:
    before, after = drop(RerouteSpec(factor=0.8, devices=3), skewed(), local_experts=torch.tensor([4, 5]))
    added = (weights(after) > 0) & ~torch.zeros(64, 6, dtype=torch.bool).scatter(1, before.expert, True)
    assert set(added.nonzero()[:, 1].tolist()) == {4, 5}


def test_all_experts_local_is_expert_choice(drop: Drop, skewed: Skewed) -> None:
    """Every expert is filled to its capacity by its best scores, however skewed the router is."""
    before, after = drop(RerouteSpec(factor=1.0, devices=1), skewed())
    capacity = math.ceil(128 / 6)
    assert loads(after) == [capacity] * 6 != loads(before)
    for expert in range(6):
        best = before.scores[:, expert].topk(capacity).indices.sort().values
        assert torch.equal((weights(after)[:, expert] > 0).nonzero().flatten(), best)


def test_a_device_may_not_do_more_than_its_experts_together(drop: Drop, skewed: Skewed) -> None:
    _, after = drop(RerouteSpec(factor=0.8, devices=3, level="device"), skewed(), shape=(4, 16))
    load = torch.tensor(loads(after)).view(3, 2).sum(-1)
    assert int(load.max()) <= 2 * math.ceil(0.8 * 128 / 6)


def test_capacity_follows_the_routers_own_load_and_not_the_candidates(drop: Drop, skewed: Skewed) -> None:
    policy = RerouteSpec(factor=1.0, devices=3)
    before, once = drop(policy, skewed(), shape=(4, 16))
    assert torch.equal(policy.capacities(once, Pool(routed=6)), policy.capacities(before, Pool(routed=6)))


def test_excluded_experts_null_experts_and_padding_get_nothing(drop: Drop, skewed: Skewed) -> None:
    pool = Pool(routed=4, null=NullSpec(zero=2))
    exclude = torch.zeros(64, 6, dtype=torch.bool)
    exclude[:, 3] = True
    mask = torch.arange(64) < 60
    logits = skewed()
    logits[:, 3] = -30
    before, after = drop(RerouteSpec(factor=2.0, devices=1), logits, pool=pool, exclude=exclude, mask=mask)
    assert loads(after)[3] == 0 and not bool(after.full[60:].any())
    assert loads(after)[4:] == loads(before)[4:]


def test_a_model_that_renormalises_does_so_over_what_is_left(drop: Drop, skewed: Skewed) -> None:
    _, after = drop(RerouteSpec(factor=0.8, devices=3), skewed(), shape=(4, 16), router={"normalize": "selected"})
    some = after.full.any(-1)
    torch.testing.assert_close(after.gate.sum(-1)[some], torch.ones(int(some.sum())).double())
