"""Top-p routing: the numbers of UniMoE-Audio, its near ties, and the ends of p."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routers.top_p import TopPSpec

LOGITS = torch.tensor([[2, 1, 0.5, 0, -0.5, -1, -1.5, -2, 0.3]], dtype=torch.float64)
NINE = Pool(routed=8, null=NullSpec(zero=1))
WEIGHED = Pool(routed=8, null=NullSpec(zero=1), shared=2)


def with_shared(logits: torch.Tensor) -> torch.Tensor:
    """Two shared columns behind the nine."""
    return torch.cat([logits, torch.tensor([[0.2, -0.3]], dtype=torch.float64).expand(len(logits), 2)], dim=1)


def inner(routing: Any) -> torch.Tensor:
    """Weights inside the chosen set."""
    return routing.gate / routing.gate.sum(-1, keepdim=True)


def test_the_hand_case_of_unimoe_audio(route: Any) -> None:
    probs = [0.4786, 0.1761, 0.1068, 0.0648, 0.0393, 0.0238, 0.0145, 0.0088, 0.0874]
    torch.testing.assert_close(LOGITS.softmax(-1)[0], torch.tensor(probs).double(), atol=1e-4, rtol=0)
    routing = route(TopPSpec(p=0.7), NINE, LOGITS)
    chosen = routing.full[0]
    assert routing.expert[0, chosen].tolist() == [0, 1, 2]
    expected = torch.tensor([0.6285, 0.2312, 0.1402]).double()
    torch.testing.assert_close(routing.gate[0, chosen], expected, atol=1e-4, rtol=0)
    assert not bool(routing.gate[0, ~chosen].any())


def test_p_is_a_share_of_what_may_be_chosen(route: Any) -> None:
    """Without its best expert the hand case has 0.338, 0.205, 0.168 ... to choose from."""
    exclude = torch.zeros(1, 9, dtype=torch.bool)
    exclude[0, 0] = True
    assert route(TopPSpec(p=0.5), NINE, LOGITS, exclude=exclude).expert[0].tolist()[:3] == [1, 2, 9]
    nothing = route(TopPSpec(p=0.5), NINE, LOGITS, exclude=torch.ones_like(exclude))
    assert not bool(nothing.full.any()) and bool((nothing.gate == 0).all())


def test_the_released_code_weighs_picks_equally(route: Any) -> None:
    routing = route(TopPSpec(p=0.7, combine="sparsemixer"), WEIGHED, with_shared(LOGITS))
    assert routing.expert[0][routing.full[0]].tolist() == [0, 1, 2]
    torch.testing.assert_close(inner(routing)[0, :3], torch.full((3,), 1 / 3).double(), atol=2e-7, rtol=0)
    share = with_shared(LOGITS)[:, [0, 1, 2, 9, 10]].softmax(-1)[0]
    assert float(routing.gate.sum()) == pytest.approx(float(share[:3].sum()), rel=1e-6)
    torch.testing.assert_close(routing.shared[0], share[3:])


def test_equal_logits_fill_seven_of_nine(route: Any) -> None:
    for value in (0.0, 1.0, -3.0):
        equal = torch.full((1, 9), value, dtype=torch.float64)
        assert int(route(TopPSpec(p=0.7), NINE, equal).full.sum()) == 7
        routing = route(TopPSpec(p=0.7, combine="sparsemixer"), WEIGHED, with_shared(equal))
        multiplier = 1 / torch.arange(9, 2, -1).double()  # 1/9, 1/8 ... 1/3 in order of choice
        expected = multiplier / (multiplier.sum() + 1e-6)
        torch.testing.assert_close(inner(routing)[0, :7], expected / expected.sum(), atol=1e-9, rtol=0)
        assert float(inner(routing)[0, 0]) == pytest.approx(0.0836, abs=1e-4)
        assert float(inner(routing)[0, 6]) == pytest.approx(0.2508, abs=1e-4)


def test_two_tied_picks_weigh_one_and_two_thirds(route: Any) -> None:
    logits = torch.tensor([[3.0, 3.0, -2, -2, -2, -2, -2, -2, -2]], dtype=torch.float64)
    routing = route(TopPSpec(p=0.7, combine="sparsemixer"), WEIGHED, with_shared(logits))
    torch.testing.assert_close(inner(routing)[0, :2], torch.tensor([1 / 3, 2 / 3]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_p_of_one_keeps_every_expert_of_every_token(route: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(500, 9)).to(dtype)
    routing = route(TopPSpec(p=1.0), NINE, logits)
    assert bool(routing.full.all())
    dense = torch.zeros(500, 9, dtype=dtype).scatter(1, routing.expert, routing.gate)
    torch.testing.assert_close(dense, logits.softmax(-1))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_the_chosen_set_is_the_smallest_that_reaches_p(route: Any, p: float) -> None:
    torch.manual_seed(1)
    logits = torch.cat([torch.randn(200, 9), 0.01 * torch.randn(100, 9)]).double()
    routing = route(TopPSpec(p=p), NINE, logits)
    probs = logits.softmax(-1)
    for token in range(300):
        order = probs[token].argsort(descending=True).tolist()
        mass, count = 0.0, 0
        while mass < p:
            mass += float(probs[token, order[count]])
            count += 1
        assert routing.expert[token][routing.full[token]].tolist() == order[:count]


def test_bounds_on_k(route: Any) -> None:
    torch.manual_seed(2)
    logits = torch.randn(300, 9).double()
    count = route(TopPSpec(p=0.8, min_k=2, max_k=3), NINE, logits).full.sum(-1)
    assert set(count.tolist()) == {2, 3}
    peaked = torch.tensor([[9.0, 0, 0, 0, 0, 0, 0, 0, 0]]).double()
    assert route(TopPSpec(p=0.5), NINE, peaked).expert[0, 0] == 0
    assert int(route(TopPSpec(p=0.5), NINE, peaked).full.sum()) == 1


def test_one_choice_sends_no_task_gradient_and_that_is_declared() -> None:
    assert TopPSpec().properties(NINE).task_gradient == "partial"
    assert TopPSpec().properties(WEIGHED).task_gradient == "exact"
    assert TopPSpec(min_k=2).properties(NINE).task_gradient == "exact"
    assert TopPSpec(min_k=1, normalize="all").properties(NINE).task_gradient == "partial"  # the zero expert alone
    assert TopPSpec(normalize="all").properties(Pool(routed=8)).task_gradient == "exact"


def test_mean_k_of_a_random_gate_is_about_four() -> None:
    """UniMoE-Audio at initialisation: width 2048, inputs of unit size, N(0, 0.02) gate."""
    torch.manual_seed(3)
    router = TopPSpec(p=0.7).build(2048, NINE)
    from zoo.moe.routing import RoutingContext

    mask = torch.ones(2000, dtype=torch.bool)
    routing = router(torch.randn(2000, 2048), RoutingContext(shape=(1, 2000), mask=mask))
    assert float(routing.full.sum(-1).float().mean()) == pytest.approx(4.0, abs=0.3)
