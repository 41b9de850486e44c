"""The gate rules of DeepSpeed-MoE (arXiv 2201.05596 and its unit tests) as settings of capacity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.dispatch.local import LocalDispatch
from zoo.moe.policies.capacity import CapacitySpec
from zoo.moe.pool import Pool
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import Routing, RoutingContext

Drop = Callable[..., tuple[Routing, Routing]]
LOGITS = torch.tensor(
    [[0.11, 0.2, 0.1, 0.3], [0.3, 0.4, 0.11, 0.1], [0.11, 0.1, 0.6, 0.5], [0.1, 0.11, 0.7, 0.8]], dtype=torch.float64
)


def pairs(routing: Routing) -> set[tuple[int, int]]:
    rows = routing.expert.tolist()
    return {(token, e) for token, row in enumerate(rows) for e in row if e < routing.experts}


@pytest.mark.parametrize(
    ("priority", "expected"),
    [
        ("score", {(0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3)}),
        ("position", {(0, 1), (0, 3), (1, 0), (1, 1), (2, 2), (2, 3), (3, 2)}),
    ],
)
def test_the_published_unit_test(priority: Any, expected: set[tuple[int, int]], drop: Drop) -> None:
    """Top-2 of four tokens at capacity 2, dropping by probability or by position."""
    policy = CapacitySpec(factor=1.0, minimum=1, priority=priority)
    assert pairs(drop(policy, LOGITS, k=2, router={"normalize": "selected"})[1]) == expected


def test_places_in_the_buffers_of_the_published_unit_test(drop: Drop) -> None:
    """Its (token, expert, slot), and the dense mask of that form gathers and combines what our rows do."""
    policy = CapacitySpec(factor=1.0, minimum=1)
    routing = drop(policy, LOGITS, k=2, router={"normalize": "selected"})[1]
    expected = [(0, 1, 0), (1, 0, 0), (1, 1, 1), (2, 2, 0), (2, 3, 0), (3, 2, 1), (3, 3, 1)]
    dispatch, x = (
        LocalDispatch(Pool(routed=4)),
        torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    rows = dispatch.gather(x, routing)
    expert = torch.arange(4).repeat_interleave(rows.counts)
    slot = torch.cat([torch.arange(int(count)) for count in rows.counts])
    count = int(rows.counts.sum())
    assert sorted(zip(rows.token[:count].tolist(), expert.tolist(), slot.tolist(), strict=True)) == expected
    mask = torch.zeros(4, 4, 2, dtype=torch.float64)
    for (token, e, place), gate in zip(expected, [g for _, g in by_pair(routing)], strict=True):
        mask[token, e, place] = gate
    buffers = torch.einsum("sec,sm->ecm", (mask > 0).double(), x)
    torch.testing.assert_close(rows.x[:count], buffers[expert, slot])
    combined = dispatch.combine(rows.x * rows.gate[:, None], rows, 4)
    torch.testing.assert_close(combined, torch.einsum("sec,ecm->sm", mask, buffers))


def by_pair(routing: Routing) -> list[tuple[tuple[int, int], float]]:
    """((token, expert), weight), in order."""
    found = zip(routing.expert.tolist(), routing.gate.tolist(), strict=True)
    return sorted(
        ((token, e), gate)
        for token, (row, gates) in enumerate(found)
        for e, gate in zip(row, gates, strict=True)
        if e < routing.experts
    )


def test_second_choices_come_after_all_first_ones(drop: Drop) -> None:
    """Expert 0: second choice of tokens 0 and 1, first choice of 2 and 3; two places."""
    logits = torch.tensor([[1.0, 2, 0, 0], [1, 0, 2, 0], [2, 0, 0, 1], [2, 0, 0, 1]], dtype=torch.float64)
    policy = CapacitySpec(factor=1.0, priority="position")
    assert {t for t, e in pairs(drop(policy, logits)[1]) if e == 0} == {0, 1}
    ranked = CapacitySpec(factor=1.0, priority="position", first_choices=True)
    after = drop(ranked, logits, router={"normalize": "selected"})[1]
    assert {t for t, e in pairs(after) if e == 0} == {2, 3}
    assert after.gate[:2].sum(-1).tolist() == [1.0, 1.0]  # a lone survivor weighs 1


def test_the_capacity_has_a_floor(drop: Drop) -> None:
    """Five tokens on one of eight experts, factor 1, at least 4 places: exactly four stay."""
    logits = torch.zeros(5, 8, dtype=torch.float64)
    logits[:, 0] = 3
    before, after = drop(CapacitySpec(factor=1.0, minimum=4, priority="position"), logits, k=1)
    assert [t for t, _ in sorted(pairs(after))] == [0, 1, 2, 3]
    torch.testing.assert_close(after.gate[:4], before.gate[:4])  # not renormalised


def test_a_place_for_every_token_keeps_every_route(drop: Drop) -> None:
    before, after = drop(CapacitySpec(factor=1.0, minimum=4), LOGITS)
    assert torch.equal(before.expert, after.expert)


def test_random_token_selection_is_uniform(drop: Drop) -> None:
    """Which of five tokens loses its place: chi-square over 400 draws, 4 degrees of freedom."""
    logits = torch.zeros(5, 8, dtype=torch.float64)
    logits[:, 0] = 3
    policy = CapacitySpec(factor=1.0, minimum=4, priority="random")
    routing, _ = drop(policy, logits, k=1)
    router = TopKSpec(k=1, normalize="all").build(8, Pool(routed=8))
    generator, lost = torch.Generator().manual_seed(0), torch.zeros(5)
    ctx = RoutingContext(shape=(1, 5), mask=routing.mask, training=True, generator=generator)
    for _ in range(400):
        after = policy(routing, router, ctx)
        gone = (~after.full[:, 0]).nonzero().flatten()
        assert len(gone) == 1
        lost[gone] += 1
    assert float(((lost - 80) ** 2 / 80).sum()) < 18.47  # 0.1 % level


def test_the_balance_loss_sees_choices_before_the_drop(drop: Drop) -> None:
    logits: Tensor = torch.zeros(5, 8, dtype=torch.float64)
    logits[:, 0] = 3
    _, after = drop(CapacitySpec(factor=1.0, minimum=4), logits, k=1)
    assert (after.selected == 0).sum() == 5 and after.full.sum() == 4
