"""Top-k routing against published routers, by hand and by brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.gates.linear import LinearGateSpec
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routers.top_k import TopKSpec


def dense(expert: Tensor, gate: Tensor, experts: int) -> Tensor:
    """[T, E] weights, whatever the order of the slots."""
    out = torch.zeros(len(expert), experts + 1, dtype=gate.dtype)
    return out.scatter(1, expert, gate)[:, :experts]


def test_weights_equal_mixtral(route: Any) -> None:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    torch.manual_seed(0)
    config = MixtralConfig(hidden_size=16, num_local_experts=8, num_experts_per_tok=2)
    theirs = MixtralTopKRouter(config)
    torch.nn.init.normal_(theirs.weight)
    x = torch.randn(64, 16)
    logits, weights, index = theirs(x)
    routing = route(TopKSpec(k=2), Pool(routed=8), logits.detach())
    assert torch.equal(routing.expert, index)
    torch.testing.assert_close(routing.gate, weights)


@pytest.mark.parametrize("normalize", [True, False])
def test_weights_equal_deepseek_v3(route: Any, normalize: bool) -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    torch.manual_seed(1)
    config = DeepseekV3Config(
        hidden_size=16, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2,
        norm_topk_prob=normalize, routed_scaling_factor=2.5,
    )  # fmt: skip
    theirs = DeepseekV3TopkRouter(config)
    torch.nn.init.normal_(theirs.weight)
    theirs.e_score_correction_bias.copy_(0.3 * torch.randn(16))
    x = torch.randn(64, 16)
    _, weights, index = theirs(x)
    spec = TopKSpec(
        k=4, score="sigmoid", normalize="selected" if normalize else "none", scale=2.5, bias=True,
        groups=4, top_groups=2, group_score="top2",
    )  # fmt: skip
    logits = x @ theirs.weight.T
    routing = route(spec, Pool(routed=16), logits.detach(), bias=theirs.e_score_correction_bias)
    torch.testing.assert_close(dense(routing.expert, routing.gate, 16), dense(index, weights, 16))


@pytest.mark.parametrize(("score", "group_score"), [("softmax", "max"), ("sigmoid", "top2")])
def test_group_limited_choice_by_brute_force(route: Any, score: Any, group_score: Any) -> None:
    torch.manual_seed(2)
    logits = torch.randn(40, 12, dtype=torch.float64)
    spec = TopKSpec(k=3, score=score, groups=4, top_groups=2, group_score=group_score)
    routing = route(spec, Pool(routed=12), logits)
    values = torch.sigmoid(logits) if score == "sigmoid" else logits.softmax(-1)
    for token in range(40):
        groups = values[token].view(4, 3)
        rank = [float(g.max()) if group_score == "max" else float(g.sort().values[-2:].sum()) for g in groups]
        best = max(itertools.combinations(range(4), 2), key=lambda pair: sum(rank[g] for g in pair))
        allowed = [e for e in range(12) if e // 3 in best]
        expected = sorted(allowed, key=lambda e: -float(values[token, e]))[:3]
        assert routing.expert[token].tolist() == expected


def test_the_plain_softmax_keeps_its_mass_and_slots_are_in_order_of_choice(route: Any) -> None:
    """MoE++: logits [2, 1, 0, 1.5] over two feed-forward, one copy and one zero expert."""
    pool = Pool(routed=2, null=NullSpec(zero=1, copy=1))  # ids: routed 0 1, zero 2, copy 3
    logits = torch.tensor([[2, 1, 1.5, 0]], dtype=torch.float64)
    probs = [0.473991, 0.174371, 0.287490, 0.064148]
    torch.testing.assert_close(logits.softmax(-1)[0], torch.tensor(probs, dtype=torch.float64), atol=1e-6, rtol=0)
    routing = route(TopKSpec(k=2, normalize="all"), pool, logits)
    assert routing.expert.tolist() == [[0, 2]]
    torch.testing.assert_close(routing.gate[0], torch.tensor([0.473991, 0.287490]).double(), atol=1e-6, rtol=0)
    selected = route(TopKSpec(k=2), pool, logits)
    assert float(selected.gate.sum()) == pytest.approx(1)
    assert float(selected.gate[0, 0]) == pytest.approx(0.473991 / (0.473991 + 0.287490), abs=1e-6)


def test_a_selection_bias_changes_the_choice_and_not_the_weights(route: Any) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    spec = TopKSpec(k=2, normalize="all", bias=True)
    routing = route(spec, Pool(routed=3), logits, bias=torch.tensor([0.0, 0.0, 1.0]))
    assert routing.expert.tolist() == [[2, 0]]  # ranked by biased scores
    probs = logits.softmax(-1)[0]
    torch.testing.assert_close(routing.gate[0], probs[[2, 0]])
    torch.testing.assert_close(routing.logits, logits)


def test_shared_columns_share_the_weight_of_the_chosen(route: Any) -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5, 0.25]], dtype=torch.float64)
    routing = route(TopKSpec(k=2), Pool(routed=3, shared=2), logits)
    expected = logits[:, [0, 1, 3, 4]].softmax(-1)[0]
    torch.testing.assert_close(routing.gate[0], expected[:2])
    torch.testing.assert_close(routing.shared[0], expected[2:])
    assert tuple(routing.logits.shape) == (1, 3)


def test_a_survivor_far_below_the_best_logit_gets_the_whole_weight() -> None:
    """Weighing anew after a drop must not underflow."""
    router = TopKSpec(k=2).build(4, Pool(routed=3))
    raw = torch.tensor([[200.0, 0.0, -1.0]], requires_grad=True)
    gate, _ = router.weigh(raw, torch.tensor([[3, 1]]))
    assert gate.tolist() == [[0.0, 1.0]]
    gate.sum().backward()
    assert raw.grad is not None and bool(raw.grad.isfinite().all())


def test_jitter_moves_the_choice_and_never_the_logits(route: Any) -> None:
    torch.manual_seed(3)
    logits = torch.randn(200, 4)
    spec, pool = TopKSpec(k=1, normalize="all", gate=LinearGateSpec(jitter=0.5)), Pool(routed=4)
    calm = route(spec, pool, logits)
    noisy = route(spec, pool, logits, training=True, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noisy.raw, calm.raw)
    assert 0 < int((noisy.expert != calm.expert).sum()) < 100
    evaluated = route(spec, pool, logits, training=False, generator=torch.Generator().manual_seed(0))
    assert torch.equal(evaluated.expert, calm.expert)


def test_a_constant_weight_has_to_be_asked_for(route: Any) -> None:
    pool = Pool(routed=3)
    with pytest.raises(ValueError, match=r"^normalize: with k = 1 .*allow_constant: true"):
        TopKSpec(k=1).check(pool)
    spec = TopKSpec(k=1, allow_constant=True)
    spec.check(pool)
    assert spec.properties(pool).task_gradient == "none"
    assert TopKSpec(k=2, allow_constant=True).properties(pool).task_gradient == "exact"
    routing = route(spec, pool, torch.tensor([[0.0, 2.0, 1.0]]))
    assert routing.expert.tolist() == [[1]] and routing.gate.tolist() == [[1.0]]
