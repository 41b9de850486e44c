"""Capacity with drop: the sheets' hand cases, brute force, and its algebra."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.policies.capacity import CapacitySpec
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.stats import Stats

Drop = Callable[..., tuple[Routing, Routing]]
Skewed = Callable[..., Tensor]
HAND = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64).log()


def loads(routing: Routing) -> list[int]:
    return [int((routing.expert == e).sum()) for e in range(routing.experts)]


def served(routing: Routing, expert: int) -> list[int]:
    return (routing.expert == expert).any(-1).nonzero().flatten().tolist()


def test_the_hand_case_four_tokens_two_experts(drop: Drop) -> None:
    before, after = drop(CapacitySpec(factor=1.0, reweigh=False), HAND, k=1)
    assert loads(before) == [3, 1]
    assert after.expert.tolist() == [[0], [0], [2], [1]]
    torch.testing.assert_close(after.gate, torch.tensor([[0.9], [0.8], [0.0], [0.7]]).double())
    assert torch.equal(after.selected, before.expert)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.1, 1.5, 2.0])
def test_an_expert_keeps_its_best_scores(factor: float, drop: Drop, skewed: Skewed) -> None:
    before, after = drop(CapacitySpec(factor=factor), skewed())
    capacity = math.ceil(factor * 128 / 6 - 1e-9)
    for expert, (old, new) in enumerate(zip(loads(before), loads(after), strict=True)):
        assert new == min(old, capacity)
        best = sorted(served(before, expert), key=lambda t: -float(before.scores[t, expert]))[:capacity]
        assert served(after, expert) == sorted(best)


@pytest.mark.parametrize(("factor", "tight"), [(1.03, False), (0.75, True)])
def test_the_share_that_is_dropped(factor: float, tight: bool, drop: Drop, skewed: Skewed) -> None:
    """sum_i relu(N_i - C) / sum_i N_i; with the mean load times gamma for C it is a bound, met where that is whole."""
    before, after = drop(CapacitySpec(factor=factor), skewed(96))  # a mean load of 32
    mean, pool = 32.0, Pool(routed=6)
    counted = sum(max(n - math.ceil(factor * mean - 1e-9), 0) for n in loads(before)) / 192
    assert float(Stats(after, pool).dropped_share) == pytest.approx(counted, abs=1e-7)
    bound = sum(max(n - factor * mean, 0) for n in loads(before)) / 192
    assert counted == pytest.approx(bound) if tight else counted < bound


def test_a_whole_capacity_is_not_lifted_by_rounding() -> None:
    """1.1 * 50 is 55.00000000000001 in floating point."""
    expert = torch.arange(100)[:, None] % 2
    routing = Routing(
        expert=expert, gate=torch.ones(100, 1), raw=torch.zeros(100, 2), scores=torch.zeros(100, 2),
        mask=torch.ones(100, dtype=torch.bool),
    )  # fmt: skip
    assert CapacitySpec(factor=1.1).capacities(routing, Pool(routed=2)).tolist() == [55.0, 55.0]


@pytest.mark.parametrize("factor", [3.0, 6.0])
def test_enough_capacity_changes_nothing(factor: float, drop: Drop, skewed: Skewed) -> None:
    before, after = drop(CapacitySpec(factor=factor), skewed())
    assert torch.equal(after.expert, before.expert)
    torch.testing.assert_close(after.gate, before.gate)


@pytest.mark.parametrize("priority", ["score", "position", "last", "random"])
def test_dropping_twice_changes_nothing_more(priority: Any, skewed: Skewed, drop: Drop) -> None:
    policy = CapacitySpec(factor=0.8, priority=priority, seed=1 if priority == "random" else None)
    _, once = drop(policy, skewed())
    router = TopKSpec(k=2, normalize="all").build(6, Pool(routed=6)).double()
    twice = policy(once, router, RoutingContext(shape=(1, 64), mask=once.mask))
    assert torch.equal(twice.expert, once.expert)
    torch.testing.assert_close(twice.gate, once.gate)


@pytest.mark.parametrize("priority", ["score", "position", "last", "random"])
def test_more_capacity_keeps_all_that_less_kept(priority: Any, drop: Drop, skewed: Skewed) -> None:
    seed = 1 if priority == "random" else None
    policies = [CapacitySpec(factor=f, priority=priority, seed=seed) for f in (0.5, 0.8, 1.0, 1.3, 2.0)]
    kept = [drop(policy, skewed())[1].full for policy in policies]
    for less, more in itertools.pairwise(kept):
        assert bool((more | ~less).all()) and int(more.sum()) > int(less.sum())


def test_position_keeps_the_earliest_and_last_the_latest(drop: Drop, skewed: Skewed) -> None:
    capacity = math.ceil(128 / 6)
    before, first = drop(CapacitySpec(factor=1.0, priority="position"), skewed())
    _, last = drop(CapacitySpec(factor=1.0, priority="last"), skewed())
    assert served(first, 0) == served(before, 0)[:capacity]
    assert served(last, 0) == served(before, 0)[-capacity:]


def test_random_is_fixed_by_the_seed_and_calm_without_one(drop: Drop, skewed: Skewed) -> None:
    policy, logits = CapacitySpec(factor=0.7, priority="random"), skewed()

    def kept(policy: CapacitySpec, seed: int | None, training: bool = True, layer: int = 0) -> list[list[int]]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        _, after = drop(policy, logits, training=training, generator=generator, layer=layer)
        return after.expert.tolist()

    assert kept(policy, 1) == kept(policy, 1) != kept(policy, 2)
    earliest = drop(CapacitySpec(factor=0.7, priority="position"), logits)[1].expert.tolist()
    assert kept(policy, None) == kept(policy, 1, training=False) == earliest
    seeded = CapacitySpec(factor=0.7, priority="random", seed=4)
    assert kept(seeded, None, False) == kept(seeded, 1, False) != earliest
    assert kept(seeded, None, False) != kept(seeded, None, False, layer=1)


def test_random_draws_do_not_see_padding(drop: Drop, skewed: Skewed) -> None:
    policy = CapacitySpec(factor=0.7, priority="random", seed=2)
    alone = drop(policy, skewed(32))[1]
    mask = torch.arange(40) >= 8
    beside = drop(policy, torch.cat([torch.zeros(8, 6).double(), skewed(32)]), mask=mask)[1]
    assert torch.equal(beside.expert[8:], alone.expert)


@pytest.mark.parametrize("priority", ["score", "position", "last", "random"])
def test_equal_scores_keep_exactly_the_capacity(priority: Any, drop: Drop) -> None:
    _, after = drop(CapacitySpec(factor=0.5, priority=priority), torch.zeros(12, 3, dtype=torch.float64), k=3)
    assert loads(after) == [6, 6, 6]


def test_padding_counts_for_nothing(drop: Drop, skewed: Skewed) -> None:
    mask = torch.ones(40, dtype=torch.bool)
    mask[32:] = False
    padded = torch.cat([skewed(32), 5 * torch.ones(8, 6).double()])
    for per in ("slots", "tokens"):
        policy = CapacitySpec(factor=0.8, per=per)
        alone, beside = drop(policy, skewed(32))[1], drop(policy, padded, mask=mask)[1]
        assert torch.equal(beside.expert[:32], alone.expert)
        assert not bool(beside.full[32:].any())


def test_null_experts_are_free_unless_asked(drop: Drop, skewed: Skewed) -> None:
    pool = Pool(routed=4, null=NullSpec(zero=2))
    logits = skewed().flip(1)  # the null experts are the most wanted
    before, free = drop(CapacitySpec(factor=0.5), logits, pool=pool)
    assert loads(free)[4:] == loads(before)[4:]
    _, bound = drop(CapacitySpec(factor=0.5, null_too=True), logits, pool=pool)
    assert max(loads(bound)) <= math.ceil(0.5 * 128 / 6)


def test_survivors_are_weighed_anew_by_the_routers_own_rule(drop: Drop, skewed: Skewed) -> None:
    before, after = drop(CapacitySpec(factor=0.7), skewed(), router={"normalize": "selected"})
    _, kept = drop(CapacitySpec(factor=0.7, reweigh=False), skewed(), router={"normalize": "selected"})
    some = after.full.any(-1)
    torch.testing.assert_close(after.gate.sum(-1)[some], torch.ones(int(some.sum())).double())
    torch.testing.assert_close(kept.gate, torch.where(kept.full, before.gate, 0))
    assert not bool(some.all())  # some token lost all: its routed output is zero


@pytest.mark.parametrize(("per", "expected"), [("tokens", [83.0, 110.0]), ("slots", [165.0, 220.0])])
def test_the_capacities_of_moe_plus_plus(per: Any, expected: list[float]) -> None:
    """T = 1000, 8 routed and 4 null experts, tau .75, gamma 1.1: 82.5 and 110 by eq. 8, 165 and 220 per assignment."""
    pool = Pool(routed=8, null=NullSpec(zero=1, copy=1, constant=2))
    expert = torch.stack([torch.arange(1000) % 12, (torch.arange(1000) + 5) % 12], dim=1)
    flat = torch.zeros(1000, 12)
    routing = Routing(expert=expert, gate=torch.ones(1000, 2), raw=flat, scores=flat, mask=torch.ones(1000) > 0)
    found = CapacitySpec(factor=1.1, tau=0.75, per=per, null_too=True).capacities(routing, pool)
    assert [found[0].item(), found[-1].item()] == expected
    assert found[:8].eq(found[0]).all() and found[8:].eq(found[-1]).all()
    assert float(found[:8].sum() / found.sum()) == pytest.approx(0.6, abs=2e-3), "the rows that networks compute"


def test_capacity_per_token_drops_at_least_45_percent_of_two_choices(drop: Drop, skewed: Skewed) -> None:
    policy = CapacitySpec(factor=1.1, per="tokens", null_too=True)
    _, after = drop(policy, skewed(600), pool=Pool(routed=4, null=NullSpec(zero=2)))
    assert float(Stats(after, Pool(routed=4, null=NullSpec(zero=2))).dropped_share) >= 0.45


def test_a_device_keeps_the_best_scores_of_all_its_experts(drop: Drop, skewed: Skewed) -> None:
    logits = skewed()[:, [0, 5, 1, 4, 2, 3]]  # a busy and an idle expert on every device
    before, after = drop(CapacitySpec(factor=0.7, level="device", devices=3), logits)
    capacity = 2 * math.ceil(0.7 * 128 / 6)
    for device in range(3):
        own = (2 * device, 2 * device + 1)
        pairs = [(float(before.scores[t, e]), t, e) for e in own for t in served(before, e)]
        best = sorted(pairs, reverse=True)[:capacity]
        assert sorted((t, e) for _, t, e in best) == sorted((t, e) for e in own for t in served(after, e))
    single = drop(CapacitySpec(factor=0.7), logits)[1]
    assert int(after.full.sum()) > int(single.full.sum())  # an idle neighbour's share can be used


def test_image_tokens_go_first(drop: Drop) -> None:
    """One expert of four wanted by eight tokens: text stays whatever the images score."""
    logits = torch.zeros(8, 4, dtype=torch.float64)
    logits[:, 0] = torch.tensor([9.0, 8, 7, 6, 1, 2, 3, 4])
    modality = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    policy = CapacitySpec(factor=2.5, drop_first=(1,))
    _, after = drop(policy, logits, k=1, modality=modality)
    assert served(after, 0) == [0, 4, 5, 6, 7]
    _, plain = drop(CapacitySpec(factor=2.5), logits, k=1, modality=modality)
    assert served(plain, 0) == [0, 1, 2, 3, 7]


def test_an_image_of_score_one_still_goes_before_text_of_score_zero(drop: Drop) -> None:
    logits = torch.tensor([[800.0, 0.0], [0.0, 800.0]], dtype=torch.float64)
    _, after = drop(CapacitySpec(factor=0.5, drop_first=(1,)), logits, k=2, modality=torch.tensor([1, 0]))
    assert float(torch.softmax(logits, -1)[0, 0]) == 1.0 and float(torch.softmax(logits, -1)[1, 0]) == 0.0
    assert served(after, 0) == [1] and served(after, 1) == [1]


def test_inference_only_is_off_in_training_and_at_a_decoding_step(drop: Drop, skewed: Skewed) -> None:
    policy, logits = CapacitySpec(factor=0.5, inference=True), skewed()
    before, prefill = drop(policy, logits)
    assert not torch.equal(prefill.expert, before.expert)
    for more in ({"training": True}, {"shape": (64, 1)}):
        before, after = drop(policy, logits, **more)
        assert after is before


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"tau": 0.0}, "tau: got 0.0"),
        ({"tau": 1.5}, "tau: got 1.5"),
        ({"factor": 0.0}, "factor"),
        ({"devices": 0}, "devices"),
        ({"drop_first": (-1,)}, "drop_first"),
        ({"seed": 1}, "seed: belongs to priority random"),
    ],
)
def test_impossible_values_are_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        CapacitySpec(**keys)


def test_experts_that_do_not_divide_over_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="devices: 6 routed experts do not divide into 4"):
        CapacitySpec(devices=4).check(Pool(routed=6))
