"""The sparse mixer against the published form, and its training estimate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.moe.pool import Pool
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routers.sparse_mixer import SparseMixer, SparseMixerSpec
from zoo.moe.routing import RoutingContext
from zoo.spec import parse

POOL = Pool(routed=6)


def router(**keys: object) -> SparseMixer:
    torch.manual_seed(0)
    spec = parse(RouterSpec, {"type": "sparse_mixer", **keys})
    assert isinstance(spec, SparseMixerSpec)
    return spec.build(6, POOL)


def context(tokens: int, **more: object) -> RoutingContext:
    return RoutingContext(shape=(1, tokens), mask=torch.ones(tokens, dtype=torch.bool), **more)  # type: ignore[arg-type]


def identity(near_tie: float) -> SparseMixer:
    """A router whose input is its logits."""
    made = router(near_tie=near_tie)
    with torch.no_grad():
        made.gate.weight.copy_(torch.eye(6))
    return made


@pytest.mark.parametrize("gap", [0.01, 0.3])
def test_inference_is_phimoe(gap: float) -> None:
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    logits = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    weight, expert = sparsemixer(logits, jitter_eps=gap, training=False)
    found = identity(gap)(logits, context(200))
    assert torch.equal(found.expert, expert)
    torch.testing.assert_close(found.gate, weight, rtol=1e-6, atol=0)
    assert ((found.gate < 1).any(), (found.gate == 1).any()) == (gap > 0.1 or bool((weight < 1).any()), True)


def test_training_gradient_is_phimoes() -> None:
    """Given the same picks and the same factors, the gradient of the logits is that of the published backward pass."""
    from transformers.models.phimoe.modeling_phimoe import PhimoeMultiplier

    logits = torch.randn(64, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    made = identity(0.6)
    ctx = context(64, training=True, generator=torch.Generator().manual_seed(3))
    found = made(logits, ctx)
    slope = torch.randn(64, 2, generator=torch.Generator().manual_seed(4))
    (grad,) = torch.autograd.grad((found.gate * slope).sum(), logits)
    share, _ = made.weigh(logits.detach(), found.expert)
    factor = found.gate.detach() / share
    copy, total = logits.detach().clone().requires_grad_(), torch.zeros(())
    left = copy
    for slot in range(2):
        best = left.detach().amax(-1, keepdim=True)
        far = ((best - copy) / copy.abs().clamp(min=best)) > 1.2
        tied = torch.softmax(left.masked_fill(far, -torch.inf), -1).detach()
        picked = found.expert[:, slot : slot + 1]
        gate = PhimoeMultiplier.apply(copy, tied.gather(1, picked), picked, tied, factor[:, slot : slot + 1])
        total = total + (gate[:, 0] * slope[:, slot]).sum()
        left = left.scatter(1, picked, -torch.inf)
    (expected,) = torch.autograd.grad(total, copy)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)


def test_picks_and_factors_follow_their_probabilities() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.8, -3.0, -3.0, -3.0]]).expand(20_000, -1)
    made = identity(0.2)
    found = made(logits, context(20_000, training=True, generator=torch.Generator().manual_seed(5)))
    share = torch.softmax(logits[0, :3], -1)
    counts = torch.bincount(found.expert[:, 0], minlength=6) / 20_000
    torch.testing.assert_close(counts[:3], share, rtol=0, atol=0.015)
    first = found.gate[:, 0] / share[found.expert[:, 0]]
    other = found.expert[:, 0] != 0
    assert bool((first[~other] == 1).all())
    assert float((first[other] > 0.9).double().mean()) == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(first[other][first[other] < 0.9].mean(), torch.tensor(1 / 3))


def test_a_clear_choice_weighs_one_in_each_slot() -> None:
    found = identity(0.01)(torch.tensor([[4.0, 3.0, 1.0, 0.0, -1.0, -2.0]]), context(1))
    assert found.expert.tolist() == [[0, 1]]
    assert found.gate.tolist() == [[1.0, 1.0]]


def test_what_a_policy_puts_there_has_weight() -> None:
    gate, _ = identity(0.01).weigh(torch.tensor([[4.0, 3.0, 1.0, 0.0, -1.0, -2.0]]), torch.tensor([[0, 2]]))
    expected: Tensor = torch.softmax(torch.tensor([3.0, 1.0]), -1)[1]
    torch.testing.assert_close(gate, torch.stack([torch.ones(()), expected])[None])


@pytest.mark.parametrize("keys", [{"k": 0}, {"near_tie": -0.1}])
def test_refuses(keys: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        router(**keys)
