"""Every paper's balance loss as settings of one rule, with the figures of its sheet in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.balance.entropy import EntropySpec
from zoo.moe.balance.switch import SwitchSpec
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routing import Routing

Chosen = Callable[..., Routing]
PerToken = Callable[..., Tensor]
FOUR = Pool(routed=4)
SKEWED = [[0], [0], [0], [0], [1], [1], [2], [3]]  # shares [.5, .25, .125, .125]


def test_deepseek_expert_and_device_level(chosen: Chosen, per_token: PerToken) -> None:
    """P = [.4, .3, .2, .1]: 1.25 over experts, 1.20 over the devices {0, 1} and {2, 3}; both 1 at even load."""
    routing = chosen([[0.4, 0.3, 0.2, 0.1]] * 8, SKEWED)
    assert float(per_token(SwitchSpec(), routing, FOUR)) == pytest.approx(1.25, abs=1e-12)
    assert float(per_token(SwitchSpec(groups=2), routing, FOUR)) == pytest.approx(1.20, abs=1e-12)
    even = chosen([[0.4, 0.3, 0.2, 0.1]] * 4, [[0], [1], [2], [3]])
    for rule in (SwitchSpec(), SwitchSpec(groups=2)):
        assert float(per_token(rule, even, FOUR)) == pytest.approx(1.0, abs=1e-12)


def test_deepseek_v2_counts_a_token_once_per_device(chosen: Chosen, per_token: PerToken) -> None:
    """f'' = D / (M T) times the tokens sent to a device, over the devices {0, 1} and {2, 3}: 2 tokens to the first, one
    to the second of M T = 3; P'' = [.7, .3]."""
    routing = chosen([[0.4, 0.3, 0.2, 0.1]] * 2, [[0, 1], [0, 2]])
    found = float(per_token(SwitchSpec(groups=2, once=True), routing, FOUR))
    assert found == pytest.approx(2 * (2 / 3 * 0.7 + 1 / 3 * 0.3), abs=1e-12)
    slots = float(per_token(SwitchSpec(groups=2), routing, FOUR))
    assert slots == pytest.approx(2 * (3 / 4 * 0.7 + 1 / 4 * 0.3), abs=1e-12)


def test_deepseek_v3_takes_each_sequence_and_sigmoids_over_their_sum(chosen: Chosen, per_token: PerToken) -> None:
    """By hand from arXiv 2412.19437 eq. 17-20, k = 2 of 4, two sequences of 5 tokens, biased choices left aside."""
    torch.manual_seed(0)
    raw = torch.randn(10, 4, dtype=torch.float64)
    biased = (raw.sigmoid() + torch.tensor([2.0, 0, 0, 0])).topk(2).indices
    routing = chosen(torch.ones(10, 4), biased).replace(raw=raw)
    expected = []
    for rows in (slice(0, 5), slice(5, 10)):
        score = raw[rows].sigmoid()
        f = torch.zeros(4, dtype=torch.float64)
        for token in score:
            f[token.topk(2).indices] += 4 / (2 * 5)
        expected.append(float((f * (score / score.sum(-1, keepdim=True)).mean(0)).sum()))
    rule = SwitchSpec(scope="sequence", score="sigmoid", count="best", weight=1e-4)
    assert float(per_token(rule, routing, FOUR, rows=2)) == pytest.approx(sum(expected) / 2, abs=1e-12)
    assert float(per_token(SwitchSpec(scope="sequence", score="sigmoid"), routing, FOUR, rows=2)) > sum(expected) / 2
    assert rule.weight_at(7) == 1e-4


def test_small_sigmoids_do_not_evade_the_loss(chosen: Chosen, per_token: PerToken) -> None:
    """With an epsilon of 1e-20 a router may drive all sigmoids below it; the loss then vanished with them."""
    raw = torch.tensor([[-45.0, -46, -47, -48]], dtype=torch.float64)
    far = chosen(torch.ones(1, 4), [[0]]).replace(raw=raw - 10)
    near = chosen(torch.ones(1, 4), [[0]]).replace(raw=raw)
    rule = SwitchSpec(score="sigmoid")
    assert float(per_token(rule, far, FOUR)) == pytest.approx(float(per_token(rule, near, FOUR)), rel=1e-6)


def test_pangu_is_the_plain_loss_over_grouped_choices(chosen: Chosen, per_token: PerToken) -> None:
    """alpha for a uniform softmax and any choice, and for an even choice and any softmax."""
    torch.manual_seed(0)
    probs = torch.softmax(torch.randn(8, 4, dtype=torch.float64), -1)
    pick = torch.stack([torch.randint(0, 2, (8,)), 2 + torch.randint(0, 2, (8,))], dim=1)
    uniform = chosen(torch.full((8, 4), 0.25), pick)
    assert float(per_token(SwitchSpec(), uniform, FOUR)) == pytest.approx(1.0, abs=1e-12)
    even = chosen(probs, [[0, 2], [1, 3]] * 4)
    assert float(per_token(SwitchSpec(), even, FOUR)) == pytest.approx(1.0, abs=1e-12)


def test_pangus_local_variant(chosen: Chosen, per_token: PerToken) -> None:
    """The mean over groups of N_g / (K' T) sum_i count_i mean_t(S_i / sum of the group), by hand."""
    torch.manual_seed(1)
    probs = torch.softmax(torch.randn(9, 6, dtype=torch.float64), -1)
    pick = torch.cat([torch.randint(0, 3, (9, 1)), 3 + torch.randint(0, 3, (9, 1))], dim=1)
    expected = 0.0
    for group in (slice(0, 3), slice(3, 6)):
        counts = torch.stack([(pick == e).sum() for e in range(6)])[group]
        share = (probs[:, group] / probs[:, group].sum(-1, keepdim=True)).mean(0)
        expected += float(3 / 9 * (counts * share).sum()) / 2
    rule = SwitchSpec(probability="local", groups=2)
    assert float(per_token(rule, chosen(probs, pick), Pool(routed=6))) == pytest.approx(expected, abs=1e-12)
    even = chosen(probs, [[0, 3], [1, 4], [2, 5]] * 3)
    assert float(per_token(rule, even, Pool(routed=6))) == pytest.approx(1.0, abs=1e-12)


def test_dynamic_routing_entropy(chosen: Chosen, per_token: PerToken) -> None:
    one = chosen([[0.4, 0.3, 0.2, 0.1]], [[0, 1]])
    assert float(per_token(EntropySpec(), one, FOUR)) == pytest.approx(1.279854, abs=1e-6)
    flat = chosen(torch.full((3, 16), 1 / 16), [[0]] * 3)
    assert float(per_token(EntropySpec(), flat, Pool(routed=16))) == pytest.approx(math.log(16), abs=1e-12)
    masked = chosen([[0.4, 0.3, 0.2, 0.1], [0.25] * 4], [[0, 1], [4, 4]]).replace(mask=torch.tensor([True, False]))
    assert float(per_token(EntropySpec(), masked, FOUR)) == pytest.approx(1.279854, abs=1e-6)


def test_dynamic_routing_balance_is_the_mean_count_times_the_shares_form(chosen: Chosen, per_token: PerToken) -> None:
    routing = chosen([[0.4, 0.3, 0.2, 0.1]] * 2, [[0, 1, 4], [0, 2, 3]])
    tokens, slots = (float(per_token(SwitchSpec(count=c), routing, FOUR)) for c in ("tokens", "slots"))
    assert tokens == pytest.approx(2.5 * slots, abs=1e-12)


@pytest.mark.parametrize("sharper", [0.1, 1.0])
def test_entropy_falls_down_its_gradient(sharper: float, chosen: Chosen, per_token: PerToken) -> None:
    raw = (sharper * torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)).requires_grad_()
    routing = chosen(torch.ones(1, 4), [[0]]).replace(raw=raw)
    value = per_token(EntropySpec(), routing, FOUR)
    (gradient,) = torch.autograd.grad(value, raw)
    after = per_token(EntropySpec(), routing.replace(raw=(raw - 0.1 * gradient).detach()), FOUR)
    assert float(after) < float(value.detach())


def test_evomoe_in_its_hard_phase(chosen: Chosen, per_token: PerToken) -> None:
    """N sum me ce: 1 at weight 1 and even load, the mean weight w below it."""
    rule = SwitchSpec(count="tokens", probability="gate")
    for weight in (1.0, 0.6):
        gate = torch.full((4, 1), weight, dtype=torch.float64)
        routing = chosen([[0.4, 0.3, 0.2, 0.1]] * 4, [[0], [1], [2], [3]], gate)
        assert float(per_token(rule, routing, FOUR)) == pytest.approx(weight, abs=1e-12)


def test_evomoe_is_inert_while_its_gate_is_dense(chosen: Chosen, per_token: PerToken) -> None:
    """All experts chosen with weights that sum to 1: N, or 1 as shares of slots, and no gradient in either form."""
    torch.manual_seed(2)
    raw = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    gate = torch.softmax(raw, -1)
    routing = chosen(torch.ones(5, 4), torch.arange(4).expand(5, 4), gate).replace(raw=raw)
    for rule, expected in (
        (SwitchSpec(count="tokens", probability="gate"), 4.0),
        (SwitchSpec(probability="gate"), 1.0),
    ):
        value = per_token(rule, routing, FOUR)
        (gradient,) = torch.autograd.grad(value, raw, retain_graph=True)
        assert float(value.detach()) == pytest.approx(expected, abs=1e-12) and float(gradient.abs().max()) < 1e-15


def longcat(expert: Any, chosen: Chosen) -> Routing:
    """k = 3 of which 2 should be routed, 4 routed experts in two groups and 2 identity experts."""
    torch.manual_seed(3)
    return chosen(torch.softmax(torch.randn(len(expert), 6, dtype=torch.float64), -1), expert)


def test_longcat_device_level_with_a_group_of_identity_experts(chosen: Chosen, per_token: PerToken) -> None:
    """alpha at K_e T / D selections per group and (K - K_e) T of identity experts, whatever the router's softmax."""
    pool = Pool(routed=4, null=NullSpec(copy=2))
    rule = SwitchSpec(groups=2, routed_share=2 / 3)
    even = longcat([[0, 2, 4], [1, 3, 5], [0, 3, 4]], chosen)
    assert float(per_token(rule, even, pool)) == pytest.approx(1.0, abs=1e-12)
    expert = [[0, 1, 2], [1, 4, 5], [0, 3, 4]]
    routing = longcat(expert, chosen)
    share = torch.softmax(routing.raw, -1).mean(0)
    counts = torch.tensor([sum(row.count(e) for row in expert) for e in range(6)]).double()
    groups = [slice(0, 2), slice(2, 4), slice(4, 6)]
    f = [2 / (2 * 3), 2 / (2 * 3), 1 / (1 * 3)]  # D / (K_e T), and 1 / ((K - K_e) T)
    expected = sum(w * float(counts[g].sum() * share[g].sum()) for w, g in zip(f, groups, strict=True))
    assert float(per_token(rule, routing, pool)) == pytest.approx(expected, abs=1e-12)


def test_longcat_without_identity_experts_is_the_device_level_loss(chosen: Chosen, per_token: PerToken) -> None:
    routing = chosen([[0.4, 0.3, 0.2, 0.1]] * 8, SKEWED)
    assert float(per_token(SwitchSpec(groups=2, routed_share=1.0), routing, FOUR)) == pytest.approx(1.2, abs=1e-12)


def test_a_budget_per_expert(chosen: Chosen, per_token: PerToken) -> None:
    pool = Pool(routed=2, null=NullSpec(zero=2))
    rule = SwitchSpec(routed_share=0.75)
    torch.testing.assert_close(rule.targets(pool), torch.tensor([0.375, 0.375, 0.125, 0.125]).double())
    at = chosen([[0.375, 0.375, 0.125, 0.125]] * 4, [[0, 1], [0, 1], [0, 2], [1, 3]])
    assert float(per_token(rule, at, pool)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("keys", "pool", "reason"),
    [
        ({"groups": 3}, FOUR, "equal routed groups"),
        ({"groups": 2}, Pool(routed=4, null=NullSpec(zero=1)), "equal routed groups"),
        ({"routed_share": 0.5}, FOUR, "get all slots"),
        ({"routed_share": 1.0}, Pool(routed=4, null=NullSpec(zero=1)), "get all slots"),
    ],
)
def test_what_does_not_fit_the_pool_is_refused(keys: dict[str, Any], pool: Pool, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SwitchSpec(**keys).check(pool)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"once": True, "scope": "global"}, "once: not counted beyond"),
        ({"count": "best", "scope": "global_exact"}, "count: not counted beyond"),
        ({"routed_share": 1.5}, "routed_share: got 1.5"),
        ({"null_weight": 0.0}, "null_weight: got 0.0"),
    ],
)
def test_impossible_values_are_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SwitchSpec(**keys)
