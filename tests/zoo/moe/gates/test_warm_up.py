"""Stochastic routing warm-up: the first step, the steps after the last one, and the gradient (arXiv 2503.05139)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.gates.warm_up import WarmUpGate, WarmUpGateSpec
from zoo.moe.pool import Pool
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routing import RoutingContext
from zoo.spec import parse

DIM, EXPERTS = 8, 16


def context(tokens: int, step: int = 0, seed: int = 0, **more: Any) -> RoutingContext:
    """A training context."""
    fields = {"mask": torch.ones(tokens, dtype=torch.bool), "training": True, **more}
    generator = torch.Generator().manual_seed(seed)
    return RoutingContext(shape=(1, tokens), step=torch.tensor(step), generator=generator, **fields)


def gate(**keys: Any) -> WarmUpGate:
    made = WarmUpGateSpec(steps=10, **keys).build(DIM, Pool(routed=EXPERTS)).double()
    with torch.no_grad():
        made.get_parameter("gate.weight").normal_(generator=torch.Generator().manual_seed(1))
    return made


def states(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("step", [10, 11, 1000])
def test_after_the_last_step_it_is_the_gate_bit_for_bit(step: int) -> None:
    made = gate()
    signal = made(states(9), context(9, step))
    assert torch.equal(signal.selection, signal.raw) and torch.equal(signal.weighing, signal.raw)


def test_the_first_step_looks_at_no_input() -> None:
    made = gate()
    one, two = (made(states(9, seed), context(9)) for seed in (0, 1))
    assert torch.equal(one.selection, two.selection) and not torch.equal(one.raw, two.raw)


def test_the_first_step_spreads_tokens_evenly() -> None:
    """Chi-square of the best expert over 8000 tokens, 15 degrees of freedom; also once the statistics have moved."""
    made, tokens = gate(), 8000
    for mean, variance in ((0.0, 1.0), (3.0, 0.04)):
        made.mean.fill_(mean)
        made.variance.fill_(variance)
        chosen = made(states(tokens), context(tokens)).selection.argmax(-1)
        counts = torch.bincount(chosen, minlength=EXPERTS).double()
        assert float(((counts - tokens / EXPERTS) ** 2 / (tokens / EXPERTS)).sum()) < 37.7  # its 0.1 % quantile


def test_half_way_half_of_the_logits_is_left() -> None:
    made = gate()
    made.mean.fill_(0.5)
    made.variance.fill_(4.0)
    x = states(4)
    signal = made(x, context(4, 5))
    noise = torch.randn(4, EXPERTS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(signal.selection, 0.5 * signal.raw + 0.5 * (0.5 + 2 * noise.double()))
    (found,) = torch.autograd.grad(signal.weighing.sum(), [made.get_parameter("gate.weight")])
    torch.testing.assert_close(found, 0.5 * x.sum(0).expand(EXPERTS, -1))


def test_weights_see_the_noise_and_losses_do_not() -> None:
    keys = {"type": "top_k", "k": 2, "normalize": "all", "gate": {"type": "warm_up", "steps": 10}}
    router = parse(RouterSpec, keys).build(DIM, Pool(routed=EXPERTS)).double()
    x = states(6)
    routing = router(x, context(6))
    assert torch.equal(routing.raw, x @ router.get_parameter("gate.gate.weight").T)
    noisy = torch.randn(6, EXPERTS, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
    torch.testing.assert_close(routing.gate, noisy.gather(1, routing.expert))


def test_statistics_are_those_of_real_tokens_and_move_once_a_step() -> None:
    made = gate(momentum=0.75)
    mask = torch.tensor([True, True, False, True])
    signal = made(states(4), context(4, mask=mask))
    logits = signal.raw[mask]
    assert [float(made.mean), float(made.variance), int(made.seen)] == [0, 1, 0], "a forward pass changes nothing"
    made.update(signal.update)
    torch.testing.assert_close(made.mean, logits.mean().detach())
    torch.testing.assert_close(made.variance, logits.var(correction=0).detach())
    before = made.mean.clone()
    again = made(states(4, 7), context(4))
    made.update(again.update)
    torch.testing.assert_close(made.mean, 0.75 * before + 0.25 * again.raw.mean().detach())


def test_evaluation_and_training_without_noise_see_the_plain_logits() -> None:
    made, x = gate(), states(5)
    for ctx in (context(5, training=False), context(5).replace(generator=None), context(5).replace(step=None)):
        signal = made(x, ctx)
        assert signal.selection is signal.weighing is signal.raw
    assert not made(x, context(5, training=False)).update


def test_the_gate_of_ling_lite() -> None:
    """softmax over 64, top 6, divided by their sum."""
    router = parse(RouterSpec, {"type": "top_k", "k": 6}).build(DIM, Pool(routed=64)).double()
    x = states(40)
    routing = router(x, context(40, training=False))
    prob = (x @ router.get_parameter("gate.weight").T).softmax(-1)
    best = prob.topk(6)
    assert torch.equal(routing.expert, best.indices)
    torch.testing.assert_close(routing.gate, best.values / best.values.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        ({"steps": 0}, r"gate\.steps: got 0"),
        ({"momentum": 1.0}, r"gate\.momentum: got 1\.0"),
        ({"gate": {"type": "warm_up"}}, r"gate\.gate: expected one that is not warmed up"),
    ],
)
def test_what_cannot_be_is_refused(plain: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(RouterSpec, {"type": "top_k", "gate": {"type": "warm_up", **plain}})
