"""EvoMoE's gate: the numbers of its schedule, both weights, the hard choice, and its balance loss."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from zoo.moe.balance.base import BalanceContext
from zoo.moe.balance.switch import SwitchSpec
from zoo.moe.gates.temperature import TemperatureSpec
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routers.dense_to_sparse import DenseToSparseSpec
from zoo.spec import SpecError, parse

FOUR = Pool(routed=4)
HAND = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)


def at(tau: float, **more: Any) -> DenseToSparseSpec:
    """A router of fixed temperature that never turns hard unless asked to."""
    return DenseToSparseSpec(temperature=TemperatureSpec(start=tau), **{"hard": None, **more})


def spread(tokens: int, experts: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(tokens, experts, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def dense(routing: Any) -> torch.Tensor:
    """[T, E] weights by expert."""
    padded = torch.zeros(len(routing.gate), routing.experts + 1, dtype=routing.gate.dtype)
    return padded.scatter_add(1, routing.expert, routing.gate)[:, : routing.experts]


def noisy(seed: int = 0, step: int | None = None) -> dict[str, Any]:
    """What the context of a training pass holds."""
    found: dict[str, Any] = {"training": True, "generator": torch.Generator().manual_seed(seed)}
    return found if step is None else found | {"step": torch.tensor(step)}


@pytest.mark.parametrize("weights", ["noise_free", "gumbel"])
def test_without_threshold_noise_and_temperature_it_is_the_dense_mixture(route: Any, weights: str) -> None:
    logits = spread(50, 6)
    routing = route(at(1.0, threshold=0.0, weights=weights), Pool(routed=6), logits)
    assert bool(routing.full.all())
    torch.testing.assert_close(dense(routing), logits.softmax(-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("weights", ["noise_free", "gumbel"])
def test_near_temperature_zero_it_is_top_1(route: Any, weights: str) -> None:
    """For gaps above tau ln(1 / c) = 7e-4: gate 1 of the Gumbel weights, the softmax's own of the noise-free ones."""
    logits = spread(300, 4)
    best = logits.topk(2).values
    logits = logits[best[:, 0] - best[:, 1] > 1e-3]
    routing = route(at(1e-4, weights=weights), FOUR, logits)
    assert torch.equal(routing.expert[:, 0], logits.argmax(-1)) and not bool(routing.full[:, 1:].any())
    expected = torch.ones(len(logits)).double() if weights == "gumbel" else logits.softmax(-1).amax(-1)
    gap = (logits.topk(2).values[:, 0] - logits.topk(2).values[:, 1]).min()
    torch.testing.assert_close(routing.gate[:, 0], expected, atol=4 * math.exp(-float(gap) / 1e-4), rtol=1e-9)


def test_near_temperature_zero_only_noise_free_weights_have_a_gradient() -> None:
    from zoo.moe.routing import RoutingContext

    logits, sizes = HAND.expand(5, 4), {}
    for weights in ("noise_free", "gumbel"):
        router = at(1e-4, weights=weights).build(4, FOUR).double()
        with torch.no_grad():
            router.gate.weight.copy_(torch.eye(4))
        ctx = RoutingContext(shape=(1, 5), mask=torch.ones(5, dtype=torch.bool))
        (gradient,) = torch.autograd.grad(router(logits, ctx).gate.sum(), router.gate.weight)
        sizes[weights] = float(gradient.abs().sum())
    assert sizes["gumbel"] < 1e-12 < 0.1 < sizes["noise_free"]


@pytest.mark.parametrize(
    ("tau", "share", "kept"),
    [
        (2.0, [0.4551, 0.2760, 0.1674, 0.1015], 4),
        (0.3, [0.9643, 0.0344, 0.00123, 0.0000438], 3),
        (0.2, [0.99326, 0.00669, 0.0000451, 3.0e-7], 2),
    ],
)
def test_the_hand_case(route: Any, tau: float, share: list[float], kept: int) -> None:
    routing = route(at(tau, weights="gumbel"), FOUR, HAND)
    torch.testing.assert_close(routing.scores[0], torch.tensor(share).double(), atol=6e-5, rtol=0)
    assert routing.expert[0].tolist() == [*range(kept), *[4] * (4 - kept)]
    torch.testing.assert_close(routing.gate[0, :kept], routing.scores[0, :kept])
    free = route(at(tau), FOUR, HAND)
    assert torch.equal(free.expert, routing.expert)
    torch.testing.assert_close(free.gate[0, :kept], HAND.softmax(-1)[0, :kept])


@pytest.mark.parametrize("curve", ["linear", "exponential"])
def test_the_schedule_goes_from_two_to_a_half_and_stays(curve: Any) -> None:
    tau = TemperatureSpec(start=2.0, end=0.5, steps=5000, curve=curve).build()
    assert float(tau(torch.tensor(0))) == 2.0
    assert float(tau(torch.tensor(2500))) == pytest.approx(1.25 if curve == "linear" else 1.0, abs=1e-12)
    for step in (5000, 5001, 10**6):
        assert float(tau(torch.tensor(step))) == pytest.approx(0.5, abs=1e-12)
    assert tau(None) == 0.5


def test_slots_are_as_many_as_experts_in_every_phase_and_the_last_is_top_1(route: Any) -> None:
    logits, spec = spread(400, 8), DenseToSparseSpec()
    counts = []
    for step in (0, 5000, 5999, 6000, 9000):
        routing = route(spec, Pool(routed=8), logits, **noisy(step, step))
        assert routing.expert.shape == (400, 8)
        counts.append(float(routing.full.sum(-1).double().mean()))
    assert counts[0] == 8 and 5 < counts[1] < 6 and 5 < counts[2] < 6 and counts[3:] == [1, 1]
    evaluated = route(spec, Pool(routed=8), logits)  # no step is known: the schedules have ended
    assert torch.equal(evaluated.expert[:, 0], logits.argmax(-1)) and bool((evaluated.full.sum(-1) == 1).all())


def test_the_hard_choice_draws_by_the_softmax_whatever_the_temperature(route: Any) -> None:
    logits = HAND.expand(20_000, 4)
    for tau in (2.0, 0.1):
        routing = route(at(tau, hard=0), FOUR, logits, **noisy(1, 0))
        drawn = torch.bincount(routing.expert[:, 0], minlength=4) / 20_000
        torch.testing.assert_close(drawn.double(), HAND.softmax(-1)[0], atol=0.012, rtol=0)
        torch.testing.assert_close(routing.gate[:, 0], HAND.softmax(-1)[0][routing.expert[:, 0]])


@pytest.mark.parametrize(
    ("size", "experts", "counts"),
    [
        (1.0, 8, [8.0, 7.8, 5.5, 3.5, 1.6]),
        (1.0, 16, [16.0, 15.1, 8.3, 4.4, 1.8]),
        (3.0, 8, [None, None, 3.1, 2.1, None]),
    ],
)
def test_the_mean_number_of_experts_falls_with_the_temperature(
    route: Any, size: float, experts: int, counts: list[float | None]
) -> None:
    logits, found = spread(4000, experts, size), []
    for tau, expected in zip((2.0, 1.0, 0.5, 0.3, 0.1), counts, strict=True):
        routing = route(at(tau), Pool(routed=experts), logits, **noisy(2))
        found.append(float(routing.full.sum(-1).double().mean()))
        assert expected is None or found[-1] == pytest.approx(expected, abs=0.12)
    assert all(b < a for a, b in itertools.pairwise(found))


def test_the_weight_that_a_hard_choice_leaves(route: Any) -> None:
    """Eight experts, logits of deviation 1: 0.74 and 0.84 of Gumbel weights at 0.5 and 0.3, 0.23 of noise-free ones."""
    logits, pool = spread(20_000, 8), Pool(routed=8)
    for tau, gumbels, free in ((0.5, 0.74, 0.83), (0.3, 0.84, 0.62), (0.1, 0.95, None)):
        hard = route(at(tau, hard=0, weights="gumbel"), pool, logits, **noisy(3, 0))
        assert float(hard.gate.sum(-1).mean()) == pytest.approx(gumbels, abs=0.012)
        soft = route(at(tau, weights="gumbel"), pool, logits, **noisy(3, 0))
        assert float(soft.gate.sum(-1).mean()) == pytest.approx(1.0, abs=0.002)
        if free is not None:
            assert float(route(at(tau), pool, logits, **noisy(3, 0)).gate.sum(-1).mean()) == pytest.approx(
                free, abs=0.012
            )
    hard = route(at(0.5, hard=0), pool, logits, **noisy(3, 0))
    assert float(hard.gate.sum(-1).mean()) == pytest.approx(0.23, abs=0.012)


def test_noise_fades_with_the_temperature_and_the_threshold_always_leaves_one(route: Any) -> None:
    spec = DenseToSparseSpec(noise=2.0, noise_end=0.0, threshold=0.2)
    logits = spread(200, 4)
    early, late = (route(spec, FOUR, logits, **noisy(4, step)) for step in (0, 5000))
    assert not torch.equal(early.expert[:, 0], logits.argmax(-1))
    assert torch.equal(late.expert[:, 0], logits.argmax(-1)) and bool(late.full[:, 0].all())
    torch.testing.assert_close(late.scores, (logits / 0.5).softmax(-1))


def test_its_balance_loss_is_a_setting_of_switch(route: Any) -> None:
    """N sum me ce: N with no gradient while all are chosen with weights that sum to 1, the mean weight when hard."""
    rule, shape = SwitchSpec(count="tokens", probability="gate"), (1, 64)
    logits = spread(64, 4)
    for weights in ("noise_free", "gumbel"):
        everyone = route(at(2.0, threshold=0.0, weights=weights), FOUR, logits, **noisy(5))
        ctx = BalanceContext.of(everyone, shape, None, None, FOUR)
        assert float(rule.loss(everyone, ctx)) / 64 == pytest.approx(4.0, abs=1e-12)
    even = torch.eye(4, dtype=torch.float64).repeat(16, 1)
    hard = route(at(0.5, hard=0), FOUR, even, step=torch.tensor(0))
    value = float(rule.loss(hard, BalanceContext.of(hard, shape, None, None, FOUR))) / 64
    assert value == pytest.approx(float(even[0].softmax(-1).amax()), abs=1e-12)


def test_with_shared_columns_all_weigh_together(route: Any) -> None:
    pool = Pool(routed=3, null=NullSpec(zero=1), shared=2)
    logits = spread(20, 6)
    for weights in ("noise_free", "gumbel"):
        routing = route(at(0.7, threshold=0.0, weights=weights), pool, logits, **noisy(6))
        total = routing.gate.sum(-1) + routing.shared.sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"temperature": {"start": 0.5, "end": 2.0}}, "router.temperature.end: got 2.0"),
        ({"hard": 4000, "temperature": {"start": 2.0, "end": 0.5, "steps": 5000}}, "router.hard: got 4000"),
        ({"noise": 0.5, "noise_end": 1.0}, "router.noise_end: got 1.0"),
        ({"threshold": 1.0}, "router.threshold: got 1.0"),
        ({"temperature": {"learn": True}}, "router.temperature.learn"),
    ],
)
def test_what_runs_backwards_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse(RouterSpec, {"type": "dense_to_sparse", **keys}, "router")


def test_a_threshold_that_empties_an_undecided_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold: got 0\.25"):
        DenseToSparseSpec(threshold=0.25).check(FOUR)
