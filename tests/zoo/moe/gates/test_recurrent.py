"""The recurrent gate: the GRU's numbers, who shares it, and what its state carries (arXiv 2408.06793)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modalities.base import Tokens
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.moe.gates.linear import LinearGateSpec
from zoo.moe.gates.recurrent import STATE, RecurrentGate, RecurrentGateSpec
from zoo.moe.layer import MoE
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import parse

DIM = 8


def context(tokens: int, **more: Any) -> RoutingContext:
    return RoutingContext(shape=(1, tokens), mask=torch.ones(tokens, dtype=torch.bool), **more)


def draw(module: nn.Module, std: float = 0.6) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def gate(state: int = 5, dim: int = DIM, **keys: Any) -> RecurrentGate:
    made = RecurrentGateSpec(state=state, **keys).build(dim, Pool(routed=4)).double()
    draw(made)
    return made


def states(tokens: int, dim: int = DIM, seed: int = 0) -> Tensor:
    return torch.randn(tokens, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cell(made: RecurrentGate) -> nn.GRUCell:
    assert made.cell is not None
    return made.cell


def test_the_state_is_that_of_a_gru_cell() -> None:
    made = gate()
    x, before = states(7), states(7, 5, 2)
    signal = made(x, context(7, carry={STATE: before}))
    after = cell(made)(x @ made.into.T, before)
    torch.testing.assert_close(signal.carry[STATE], after, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(signal.raw, after @ made.out.T, rtol=1e-12, atol=1e-14)
    first = made(x, context(7))
    torch.testing.assert_close(first.carry[STATE], cell(made)(x @ made.into.T), rtol=1e-12, atol=1e-14)


def test_the_scalar_case() -> None:
    made = gate(state=1, dim=1)
    with torch.no_grad():
        made.into.fill_(1)
        made.out.fill_(1)
        cell(made).weight_ih.copy_(torch.tensor([[0.5], [1.0], [1.0]]))  # reset, update, new
        cell(made).weight_hh.copy_(torch.tensor([[0.5], [-1.0], [2.0]]))
        cell(made).bias_ih.zero_()
        cell(made).bias_hh.zero_()
    one = torch.ones(1, 1, dtype=torch.float64)
    assert made(one, context(1, carry={STATE: 0.5 * one})).carry[STATE].item() == pytest.approx(0.663383, abs=5e-7)


def closed(made: RecurrentGate) -> None:
    """Both gates of the GRU shut, weights of the new state small, no biases there."""
    with torch.no_grad():
        for weight in (cell(made).weight_ih, cell(made).weight_hh):
            weight[:10].zero_()
            weight[10:].mul_(1e-4)
        for bias in (cell(made).bias_ih, cell(made).bias_hh):
            bias[:10].fill_(-60)
            bias[10:].zero_()


def test_with_both_gates_shut_it_is_a_low_rank_router() -> None:
    made = gate()
    closed(made)
    x = states(7)
    linear = x @ (made.out @ cell(made).weight_ih[10:] @ made.into).T
    raw = made(x, context(7, carry={STATE: states(7, 5, 2)})).raw
    torch.testing.assert_close(raw, linear, rtol=0, atol=1e-9)
    with torch.no_grad():
        cell(made).bias_hh[10:].fill_(1.0)
        torch.testing.assert_close(made(x, context(7)).raw, raw, rtol=0, atol=1e-9)
        cell(made).bias_ih[10:].fill_(1e-3)
        assert float((made(x, context(7)).raw - raw).abs().max()) > 1e-4


def trunk(gate: dict[str, Any] | None = None, layers: int = 3) -> Backbone:
    router = {"type": "top_k", "k": 2, "gate": {"type": "recurrent", "state": 5, **(gate or {})}}
    ffn = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 6}, "router": router}
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    made = parse(BackboneSpec, {"dim": DIM, "layers": [{"repeat": layers, "block": block}]}).build().double()
    draw(made, 0.5)
    return made


def test_one_gru_belongs_to_the_first_layer() -> None:
    model = trunk()
    owners = [name for name, _ in model.named_parameters() if "cell" in name]
    assert owners == [f"blocks.0.ffn.router.gate.cell.{kind}_{w}" for kind in ("weight", "bias") for w in ("ih", "hh")]
    assert [layer.router.common is not None for layer in model.moe_layers()] == [True, False, False]
    assert model.spec.cost().total == sum(p.numel() for p in model.parameters())


def test_the_papers_extra_parameters() -> None:
    """24 layers of width 1280 with 16 experts: a state of 128 instead of linear gates costs 3,588,864."""
    pool, spec, linear = Pool(routed=16), RecurrentGateSpec(state=128), LinearGateSpec().cost(1280, Pool(routed=16))
    total = 24 * spec.cost(1280, pool).total + 23 * spec.follow_cost(1280, pool).total
    assert total == 4_080_384 and total - 24 * linear.total == 3_588_864


def test_tokens_are_routed_apart() -> None:
    model, x = trunk(), states(6).view(6, 1, DIM)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        together = model(Tokens(embedding=x)).records
        mixed = model(Tokens(embedding=x[order])).records
        alone = [model(Tokens(embedding=row[None])).records for row in x]
    for index, record in enumerate(together):
        torch.testing.assert_close(mixed[index].routing.raw, record.routing.raw[order], rtol=0, atol=1e-12)
        single = torch.cat([records[index].routing.raw for records in alone])
        torch.testing.assert_close(single, record.routing.raw, rtol=0, atol=1e-12)


def test_dense_layers_between_let_the_state_pass() -> None:
    router = {"type": "top_k", "k": 2, "gate": {"type": "recurrent", "state": 5}}
    moe = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 6}, "router": router}
    layers = [{"block": {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}}
              for ffn in (moe, {"type": "dense", "hidden": 4}, moe)]  # fmt: skip
    model = parse(BackboneSpec, {"dim": DIM, "layers": layers}).build().double()
    draw(model, 0.5)
    first, last = model(Tokens(embedding=states(4).view(1, 4, DIM))).records
    (found,) = torch.autograd.grad(last.routing.raw.sum(), [first.routing.carry[STATE]], allow_unused=True)
    assert found is not None and bool(found.any())


@pytest.mark.parametrize(("passing", "reached"), [("whole", True), ("detached", False), ("none", False)])
def test_how_the_loss_of_a_later_layer_reaches_the_first(passing: str, reached: bool) -> None:
    """With the whole output of the first layer left out."""
    router = {"type": "top_k", "k": 2, "gate": {"type": "recurrent", "state": 5, "passing": passing}}
    plain = {"routed": 4, "experts": {"type": "swiglu", "hidden": 6}, "router": router}
    first, last = (MoE(parse(MoESpec, plain), DIM).double() for _ in range(2))
    draw(first)
    draw(last)
    last.router.link([first.router])
    into = first.router.get_parameter("gate.into")
    before = first.route(states(6), context(6))
    out = last(states(6, seed=5), context(6, carry=before.carry))
    (found,) = torch.autograd.grad(out.y.sum(), [into], allow_unused=True)
    assert (found is not None and bool(found.any())) == reached


def test_without_passing_every_layer_starts_anew() -> None:
    made = gate(passing="none")
    x = states(4)
    assert torch.equal(made(x, context(4, carry={STATE: states(4, 5, 2)})).raw, made(x, context(4)).raw)


def test_bfloat16_models_keep_the_state_in_float32() -> None:
    torch.manual_seed(0)
    made = RecurrentGateSpec(state=5).build(DIM, Pool(routed=4)).bfloat16()
    signal = made(states(4).bfloat16(), context(4))
    assert signal.raw.dtype == signal.carry[STATE].dtype == torch.float32
