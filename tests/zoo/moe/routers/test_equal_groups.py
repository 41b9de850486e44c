"""Equally many experts of every group (Pangu Pro MoE): choice, weights, loss, and devices that are even by
construction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.backbone.trunk import BackboneSpec
from zoo.moe.balance.base import BalanceContext
from zoo.moe.balance.switch import SwitchSpec
from zoo.moe.pool import Pool
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routers.top_k import TopKSpec
from zoo.spec import SpecError, parse

EIGHT = Pool(routed=8)


def moge(k: int, groups: int, **more: Any) -> TopKSpec:
    """Pangu's router: a softmax over all, equal counts, no renormalisation."""
    return TopKSpec(k=k, groups=groups, equal_groups=True, normalize="all", **more)


def logits(tokens: int, experts: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(tokens, experts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loads(expert: Tensor, experts: int, devices: int) -> Tensor:
    """[devices] expert computations on each device, expert i being on device i // (experts / devices)."""
    return torch.bincount(expert.flatten() // (experts // devices), minlength=devices)


def test_one_group_is_plain_top_k(route: Any) -> None:
    x = logits(40, 8)
    one, plain = (route(spec, EIGHT, x) for spec in (moge(3, 1), TopKSpec(k=3, normalize="all")))
    assert torch.equal(one.expert, plain.expert) and torch.equal(one.gate, plain.gate)


def test_as_many_groups_as_experts_is_the_dense_mixture(route: Any) -> None:
    x = logits(40, 8)
    routing = route(moge(8, 8), EIGHT, x)
    assert torch.equal(routing.expert, torch.arange(8).expand(40, 8))
    torch.testing.assert_close(routing.gate, x.softmax(-1), atol=1e-15, rtol=0)


def test_the_hand_case(route: Any) -> None:
    """Plain top-2 would take experts 0 and 3."""
    x = torch.tensor([[3, 1, 0, 2, 1.5, 0.5, 0.2, 0.1]], dtype=torch.float64)
    routing = route(moge(2, 2), EIGHT, x)
    share = [0.5066, 0.0686, 0.0252, 0.1864, 0.1130, 0.0416, 0.0308, 0.0279]
    torch.testing.assert_close(routing.scores[0], torch.tensor(share).double(), atol=6e-5, rtol=0)
    assert routing.expert[0].tolist() == [0, 4]
    torch.testing.assert_close(routing.gate[0], torch.tensor([0.5066, 0.1130]).double(), atol=6e-5, rtol=0)
    assert sorted(route(TopKSpec(k=2), EIGHT, x).expert[0].tolist()) == [0, 3]


@pytest.mark.parametrize("tokens", [1, 2, 16, 333])
@pytest.mark.parametrize(("experts", "k", "groups"), [(64, 8, 8), (16, 4, 4), (12, 6, 3)])
def test_every_device_computes_equally_much_at_any_batch_size(
    route: Any, tokens: int, experts: int, k: int, groups: int
) -> None:
    routing = route(moge(k, groups), Pool(routed=experts), logits(tokens, experts, tokens))
    assert loads(routing.expert, experts, groups).tolist() == [tokens * k // groups] * groups
    for block in routing.expert.view(tokens, groups, -1).unbind(1):  # constant split sizes, slots by group
        assert len(set((block // (experts // groups)).flatten().tolist())) == 1
    assert bool((routing.expert.sort(-1).values.diff(dim=-1) > 0).all())


def test_free_choices_are_uneven_over_devices() -> None:
    """64 experts on 8 devices, 8 distinct ones a token, 16 tokens: imbalance 0.668 on average, and never 0."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(4000, 16, 64, generator=generator).topk(8, dim=-1).indices.flatten(1) // 8
    load = torch.zeros(4000, 8).scatter_add(1, chosen, torch.ones(chosen.shape))
    score = (load.amax(1) - load.amin(1)) / 16
    assert float(score.mean()) == pytest.approx(0.668, abs=0.012) and bool((score > 0).all())
    assert float(score.quantile(0.05)) == pytest.approx(0.375) and float(score.quantile(0.95)) == pytest.approx(1.0)
    assert torch.equal((16 * score).round(), 16 * score)


def test_the_loss_is_one_at_a_uniform_softmax_and_at_an_even_choice(route: Any) -> None:
    def loss(rule: SwitchSpec, routing: Any) -> float:
        ctx = BalanceContext.of(routing, (1, len(routing.mask)), None, None, EIGHT)
        return float(rule.loss(routing, ctx)) / len(routing.mask)

    uniform = route(moge(2, 2), EIGHT, torch.zeros(9, 8, dtype=torch.float64))
    even = torch.tensor([[float(e == t % 4) + float(e == 4 + (t + 1) % 4) for e in range(8)] for t in range(8)])
    for routing in (uniform, route(moge(2, 2), EIGHT, 3 * even.double())):
        for rule in (SwitchSpec(), SwitchSpec(probability="local", groups=2)):
            assert loss(rule, routing) == pytest.approx(1.0, abs=1e-12)
    skewed = route(moge(2, 2), EIGHT, logits(50, 8) + torch.arange(8))
    f = torch.bincount(skewed.expert.flatten(), minlength=8).double() * 8 / (2 * 50)
    assert f[:4].sum() == f[4:].sum() == 4
    assert loss(SwitchSpec(), skewed) == pytest.approx(float((f * skewed.scores.mean(0)).sum()), abs=1e-12)


def test_an_excluded_expert_leaves_the_others_of_its_group(route: Any) -> None:
    x = logits(30, 8)
    barred = torch.zeros(30, 8, dtype=torch.bool)
    barred[:, :3] = True
    routing = route(moge(4, 2), EIGHT, x, exclude=barred)
    assert routing.expert[:, :2].tolist() == [[3, 8]] * 30  # one is left of the first group, the other slot is empty
    assert bool((routing.expert[:, 2:] >= 4).all()) and bool((routing.gate[:, 1] == 0).all())


def test_parameters_of_pangu_pro_moe() -> None:
    """71,988,188,160 in all and 16,497,546,240 active, both embeddings included."""
    spec = parse(
        BackboneSpec,
        {
            "dim": 5120,
            "layers": [
                {
                    "repeat": 48,
                    "block": {
                        "type": "sequential",
                        "attention": {"heads": 40, "kv_heads": 8, "head_dim": 128},
                        "ffn": {
                            "type": "moe",
                            "routed": 64,
                            "experts": {"type": "swiglu", "hidden": 1344},
                            "shared": {"count": 4, "hidden": 1344},
                            "router": {"type": "top_k", "k": 8, "groups": 8, "equal_groups": True, "normalize": "all"},
                        },
                    },
                }
            ],
        },
    )
    embeddings, cost = 2 * 153376 * 5120, spec.cost()
    assert cost.total + embeddings == 71_988_188_160
    assert cost.active + embeddings == 16_497_546_240


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"k": 3, "groups": 2}, r"router\.k: got 3, expected a multiple of 2"),
        ({"k": 4, "groups": 4, "top_groups": 2}, r"router\.equal_groups: every group"),
    ],
)
def test_groups_that_cannot_be_equal_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse(RouterSpec, {"type": "top_k", "equal_groups": True, **keys}, "router")


def test_a_learned_factor_per_expert_multiplies_its_weights_and_chooses_nothing(route: Any) -> None:
    """router_scale of the released code: 1 at first, a weight of expert e is S_e times its factor e."""
    spec, x = moge(2, 2, expert_scale=True), logits(12, 8)
    plain, started = route(moge(2, 2), EIGHT, x), route(spec, EIGHT, x)
    assert torch.equal(started.gate, plain.gate) and torch.equal(started.expert, plain.expert)
    router = spec.build(8, EIGHT)
    scale = router.expert_scale
    assert scale is not None
    with torch.no_grad():
        scale.copy_(torch.arange(8) / 4)
    gate, _ = router.weigh(x, plain.expert)
    torch.testing.assert_close(gate, plain.gate * plain.expert / 4, atol=1e-15, rtol=0)
    gate.sum().backward()
    share = torch.zeros(12, 8, dtype=torch.float64).scatter(1, plain.expert, plain.gate).sum(0)
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad.double(), share, atol=1e-6, rtol=0)
    empty, _ = router.weigh(x, torch.full((12, 2), 8))
    assert not bool(empty.any())
    assert spec.cost(16, EIGHT).total == moge(2, 2).cost(16, EIGHT).total + 8
    router.reset_parameters()
    assert torch.equal(scale, torch.ones(8))


def test_a_pool_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="groups: 8 experts do not divide into 3"):
        moge(3, 3).check(EIGHT)
    with pytest.raises(ValueError, match="k: got 12, expected at most 8"):
        moge(12, 4).check(EIGHT)
