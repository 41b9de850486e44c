"""Experts that choose tokens: by hand, per sequence, with a gate that learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.balance.step import BalanceStep
from zoo.moe.layer import MoE
from zoo.moe.pool import Pool
from zoo.moe.record import LayerRecord
from zoo.moe.routers.expert_choice import ExpertChoice, ExpertChoiceSpec, ThresholdChoice
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import SpecError, parse


def route(scores: Tensor, mask: Tensor | None = None, document: Tensor | None = None, **keys: Any) -> Routing:
    """The routing of one or more rows of tokens with these sigmoid scores [B, S, E]."""
    rows, length, experts = scores.shape
    router = ExpertChoiceSpec(score="sigmoid", **keys).build(experts, Pool(routed=experts)).double()
    real = torch.ones(rows, length, dtype=torch.bool) if mask is None else mask
    flat_document = None if document is None else document.flatten()
    ctx = RoutingContext(shape=(rows, length), mask=real.flatten(), document=flat_document)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(experts))
        return router(torch.logit(scores).flatten(0, 1), ctx)


def taken(routing: Routing, expert: int) -> list[int]:
    """The tokens an expert serves."""
    return (routing.expert == expert).any(1).nonzero().flatten().tolist()


HAND = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.6, 0.3], [0.4, 0.7]]], dtype=torch.float64)


def test_by_hand() -> None:
    assert taken(route(HAND), 0) == [0, 2]
    masked = torch.tensor([[False, True, True, True]])
    assert taken(route(HAND, masked), 0) == [2, 3]  # half of three real tokens, rounded up


def test_a_sequence_is_a_row_and_a_document_of_it() -> None:
    scores = torch.rand(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(0.05, 0.95)
    document = torch.tensor([[5, 5, 5, 2, 2, 2, 2], [0, 0, 0, 0, 1, 1, 1]])
    together = route(scores, document=document, share=0.4)
    for expert in range(3):
        expected = []
        for row, part in ((0, slice(0, 3)), (0, slice(3, 7)), (1, slice(0, 4)), (1, slice(4, 7))):
            alone = route(scores[row : row + 1, part], share=0.4)
            expected += [row * 7 + part.start + i for i in taken(alone, expert)]
        assert taken(together, expert) == expected


def test_a_token_offers_itself_to_its_best_experts() -> None:
    routing = route(HAND, offers=1, share=1.0)
    assert (taken(routing, 0), taken(routing, 1)) == ([0, 2], [1, 3])
    short = route(torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]]).double(), offers=1, share=0.5)
    assert (taken(short, 0), taken(short, 1)) == ([0, 1], [])
    filled = route(
        torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]]).double(), offers=1, share=0.5, fill=True
    )
    assert (taken(filled, 0), taken(filled, 1)) == ([0, 1], [2, 3])


def test_every_expert_serves_its_share_and_no_more() -> None:
    scores = torch.rand(3, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).clamp(0.05, 0.95)
    load = torch.bincount(route(scores, share=0.5).expert.flatten(), minlength=5)[:4]
    assert load.tolist() == [12, 12, 12, 12]


def layer(**router: Any) -> MoE:
    plain = {"routed": 4, "experts": {"type": "union", "hidden": 4}, "allow_future": True,
             "router": {"type": "expert_choice", **router}}  # fmt: skip
    torch.manual_seed(2)
    return MoE(parse(MoESpec, plain), 8).double()


def gate_gradient(moe: MoE) -> Tensor:
    x = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = moe(x, RoutingContext(shape=(2, 6), mask=torch.ones(12, dtype=torch.bool))).y
    (found,) = torch.autograd.grad((y * torch.cos(x)).sum(), list(moe.router.parameters()), allow_unused=True)
    return torch.zeros(1) if found is None else found


def test_the_gate_learns_unless_it_only_selects() -> None:
    assert gate_gradient(layer(weight="score")).any()
    assert gate_gradient(layer(weight="straight_through")).any()
    assert not gate_gradient(layer(weight="unit")).any()


def test_straight_through_weighs_one_and_learns_as_the_score() -> None:
    through, score = layer(weight="straight_through"), layer(weight="score")
    raw = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    expert = torch.arange(4).expand(5, -1)
    gates = [moe.router.weigh(raw, expert)[0] for moe in (through, score)]
    assert torch.equal(gates[0], torch.ones_like(gates[0]))
    weight = torch.randn_like(gates[0])
    found = [torch.autograd.grad((gate * weight).sum(), raw, retain_graph=True)[0] for gate in gates]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-14)


def test_later_tokens_matter_unless_a_threshold_decides() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, 6, 8, dtype=torch.float64, generator=generator)
    other = x.clone()
    other[:, 4:] = 3 * torch.randn(1, 2, 8, dtype=torch.float64, generator=generator)
    ctx = RoutingContext(shape=(1, 6), mask=torch.ones(6, dtype=torch.bool))
    for moe, same in ((layer(share=0.3), False), (layer(select="threshold"), True), (layer(share=1.0), True)):
        torch.nn.init.normal_(moe.router.gate.weight)  # type: ignore[arg-type]
        before, after = moe(x, ctx).y[:, :4], moe(other, ctx).y[:, :4]
        assert torch.equal(before, after) == same


def test_what_looks_ahead_is_refused_in_a_causal_layer() -> None:
    plain = {"routed": 4, "experts": {"type": "union", "hidden": 4}, "router": {"type": "expert_choice"}}
    with pytest.raises(SpecError, match="router: lets later tokens matter"):
        parse(MoESpec, plain)
    parse(MoESpec, {**plain, "router": {"type": "expert_choice", "select": "threshold"}})


def test_a_threshold_finds_its_share() -> None:
    moe = layer(select="threshold", share=0.3, rate=0.05)
    torch.nn.init.normal_(moe.router.gate.weight)  # type: ignore[arg-type]
    x = torch.randn(1, 512, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ctx = RoutingContext(shape=(1, 512), mask=torch.ones(512, dtype=torch.bool))
    shares = []
    for _ in range(60):
        out = moe(x, ctx)
        step = BalanceStep([moe])
        step.add([LayerRecord(out.routing, out.stats, ctx.shape)])
        step.finish(0)
        shares.append(float((out.stats.load / 512 - 0.3).abs().max()))
    assert shares[-1] < 0.02 < shares[0]
    assert isinstance(moe.router, ThresholdChoice) and "threshold" in dict(moe.router.named_buffers())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"share": 0.0}, "share: got 0.0"),
        ({"offers": 5}, "router.offers: got 5, expected at most 4"),
        ({"fill": True, "select": "threshold"}, "fill: a threshold has no number"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        layer(**keys)


def test_top_is_not_a_threshold() -> None:
    assert type(layer().router) is ExpertChoice
