"""Choices drawn in training: DeepSpeed-MoE's sampled second expert and its noisy top-1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.moe.gates.gumbel import GumbelGateSpec
from zoo.moe.pool import Pool
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import Routing, RoutingContext

LOGITS = torch.tensor([0.9, 0.1, 0.6, -0.4])
TOKENS = 4000


def choose(spec: TopKSpec, *, training: bool = True, seed: int | None = 0) -> Routing:
    """The routing of many equal tokens."""
    router = spec.build(4, Pool(routed=4))
    with torch.no_grad():
        dict(router.named_parameters())["gate.weight"].copy_(torch.eye(4))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    mask = torch.ones(TOKENS, dtype=torch.bool)
    ctx = RoutingContext(shape=(1, TOKENS), mask=mask, training=training, generator=generator)
    routing: Routing = router(LOGITS.expand(TOKENS, 4), ctx)
    return routing


def chi_square(expert: Tensor, probability: Tensor) -> float:
    """Of counts against probabilities; experts of probability 0 are left out."""
    seen, expected = torch.bincount(expert, minlength=4).float(), probability * len(expert)
    possible = probability > 0
    return float(((seen - expected)[possible] ** 2 / expected[possible]).sum())


def test_the_best_stays_and_the_second_is_drawn_from_the_rest() -> None:
    routing = choose(TopKSpec(k=2, gate=GumbelGateSpec()))
    assert bool((routing.expert[:, 0] == 0).all()) and bool((routing.expert[:, 1] != 0).all())
    rest = LOGITS.masked_fill(torch.arange(4) == 0, -torch.inf).softmax(-1)
    assert chi_square(routing.expert[:, 1], rest) < 13.8  # 2 degrees of freedom, 0.1 % level


def test_the_first_may_be_drawn_too() -> None:
    routing = choose(TopKSpec(k=1, normalize="all", gate=GumbelGateSpec(first="drawn")))
    assert chi_square(routing.expert[:, 0], LOGITS.softmax(-1)) < 16.3  # 3 degrees of freedom


def test_weights_and_losses_see_no_noise() -> None:
    routing = choose(TopKSpec(k=2, gate=GumbelGateSpec()))
    torch.testing.assert_close(routing.raw, LOGITS.expand(TOKENS, 4), rtol=0, atol=0)
    torch.testing.assert_close(routing.gate, LOGITS[routing.expert].softmax(-1))


@pytest.mark.parametrize(("training", "seed"), [(False, 0), (True, None)])
def test_inference_draws_nothing(training: bool, seed: int | None) -> None:
    """The published code samples in evaluation too (deepspeedai/DeepSpeed#8620), so that it is not deterministic."""
    routing = choose(TopKSpec(k=2, gate=GumbelGateSpec()), training=training, seed=seed)
    assert bool((routing.expert == torch.tensor([0, 2])).all())


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"jitter: got 0\.1, expected 0"):
        GumbelGateSpec(jitter=0.1)
    assert TopKSpec(gate=GumbelGateSpec()).properties(Pool(routed=4)).noise
