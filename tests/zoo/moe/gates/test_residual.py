"""Gating residuals and both gatings of MoE++: the hand numbers of arXiv 2410.07348 and of its released code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.moe.gates.residual import LOGITS, ResidualGate
from zoo.moe.layer import MoE
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routers.base import GatedRouter, RouterSpec
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import SpecError, parse

DIM = 8
CHEAP = {"null_experts": {"zero": 1, "copy": 1}}
PAPER = {"type": "top_k", "k": 2, "normalize": "all"}
RELEASED = {"type": "top_k", "k": 2, "mask_zero": True}


def context(tokens: int, **more: Any) -> RoutingContext:
    return RoutingContext(shape=(1, tokens), mask=torch.ones(tokens, dtype=torch.bool), **more)


def layer(router: dict[str, Any], **more: Any) -> MoE:
    """A layer in float64, every parameter drawn."""
    plain = {"routed": 2, "experts": {"type": "swiglu", "hidden": 6}, "router": router, **more}
    made = MoE(parse(MoESpec, plain), DIM).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def states(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("router", "expected"), [(PAPER, [0.473991, 0.287490]), (RELEASED, [1.0, 0.0])])
def test_the_two_gatings_of_the_hand_case(router: dict[str, Any], expected: list[float]) -> None:
    """Two networks, zero, copy (our order) with logits 2, 1, 1.5, 0: networks 0 and the zero expert are chosen."""
    built = parse(RouterSpec, router).build(4, Pool(routed=2, null=NullSpec(zero=1, copy=1))).double()
    assert isinstance(built, GatedRouter)
    with torch.no_grad():
        built.get_parameter("gate.weight").copy_(torch.eye(4))
        found = built(torch.tensor([[2.0, 1.0, 1.5, 0.0]], dtype=torch.float64), context(1))
    assert found.expert.tolist() == [[0, 2]]
    assert found.gate[0].tolist() == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("router", "scale", "factor"), [(PAPER, 1.0, None), (RELEASED, 1.0, 1.0), (RELEASED, 2.0, 2.0), (PAPER, 2.0, None)]
)
def test_a_token_on_zero_and_copy(router: dict[str, Any], scale: float, factor: float | None) -> None:
    moe = layer({**router, "gate": {"bias": True}}, input_scale=scale, **CHEAP)
    with torch.no_grad():
        moe.router.get_parameter("gate.bias").copy_(torch.tensor([-50.0, -50.0, 50.0, 50.0]))
    x = states(5)
    out = moe(x, context(5))
    weight = out.routing.gate[out.routing.expert == 3][:, None]
    expected = scale * weight * x if factor is None else factor * x
    torch.testing.assert_close(out.y, expected, rtol=1e-12, atol=1e-12)


def test_zero_experts_alone_leave_nothing_to_divide_by() -> None:
    moe = layer({**RELEASED, "gate": {"bias": True}}, null_experts={"zero": 2})
    with torch.no_grad():
        moe.router.get_parameter("gate.bias").copy_(torch.tensor([-50.0, -50.0, 50.0, 50.0]))
    x = states(3).requires_grad_()
    out = moe(x, context(3))
    assert not bool(out.routing.gate.any()) and not bool(out.y.any())
    out.y.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in moe.parameters())


def test_without_zero_experts_the_released_gating_is_the_plain_one_bit_for_bit() -> None:
    plain, masked = layer({"type": "top_k", "k": 2}), layer(RELEASED)
    x = states(9)
    assert torch.equal(plain(x, context(9)).y, masked(x, context(9)).y)


def test_the_input_factor_is_for_experts_alone() -> None:
    moe = layer(PAPER, shared={"count": 1, "hidden": 4}, input_scale=2.0, **CHEAP)
    once = layer(PAPER, shared={"count": 1, "hidden": 4}, **CHEAP)
    x = states(6)
    out, other = moe(x, context(6)), once(x, context(6))
    assert torch.equal(out.routing.raw, other.routing.raw)
    shared = once.shared(x, other.routing)
    twice = once.finish(once.start(2 * x, other.routing, context(6)))
    torch.testing.assert_close(out.y, twice + shared, rtol=1e-12, atol=1e-12)


def trunk(gate: dict[str, Any], layers: int = 3) -> Backbone:
    ffn = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 6}, "router": {**PAPER, "gate": gate}}
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    torch.manual_seed(0)
    return parse(BackboneSpec, {"dim": DIM, "layers": [{"repeat": layers, "block": block}]}).build().double()


def gates(model: Backbone) -> list[ResidualGate]:
    found = [moe.router.gate for moe in model.moe_layers()]
    assert all(isinstance(gate, ResidualGate) for gate in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("inner", ["linear", "mlp"])
def test_logits_add_up_over_the_layers(inner: str) -> None:
    chain = gates(trunk({"type": "residual", "gate": {"type": inner}}))
    assert [gate.map is None for gate in chain] == [True, False, False]
    past: dict[str, Tensor] = {}
    total = torch.zeros(5, 4, dtype=torch.float64)
    for seed, gate in enumerate(chain):
        x = states(5, seed)
        signal = gate(x, context(5, carry=past))
        own = gate.gate(x, context(5)).raw
        total = own if gate.map is None else own + total @ gate.map.T
        torch.testing.assert_close(signal.raw, total, rtol=1e-12, atol=1e-14)
        assert signal.carry[LOGITS] is signal.raw
        past = dict(signal.carry)


def test_each_tokens_logits_may_be_scaled_to_one_deviation() -> None:
    """An option of the released code: over all experts, N - 1 below; the next layer adds the logits as they were."""
    plain, scaled = gates(trunk({"type": "residual"})), gates(trunk({"type": "residual", "spread": 1.0}))
    x, past = states(5), {LOGITS: states(5)[:, :4]}
    for before, after in zip(plain, scaled, strict=True):
        wanted, found = (gate(x, context(5, carry=past)) for gate in (before, after))
        assert torch.equal(found.carry[LOGITS], wanted.raw)
        expected = wanted.raw / wanted.raw.std(dim=1, keepdim=True)
        for logits in (found.raw, found.selection, found.weighing):
            torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        scaled[0].get_parameter("gate.weight").zero_()
    even = scaled[0](x.requires_grad_(), context(5))
    assert not bool(even.raw.any())
    even.raw.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in scaled[0].parameters() if p.grad is not None)
    with pytest.raises(SpecError, match=r"gate\.spread: got 0\.0"):
        layer({**PAPER, "gate": {"type": "residual", "spread": 0.0}})


def test_maps_of_zero_change_nothing() -> None:
    from modalities.base import Tokens

    chained, plain = trunk({"type": "residual"}), trunk({"type": "linear"})
    state = {k.replace("gate.gate.", "gate."): v for k, v in chained.state_dict().items() if not k.endswith(".map")}
    plain.load_state_dict(state)
    with torch.no_grad():
        for gate in gates(chained)[1:]:
            assert gate.map is not None
            gate.map.zero_()
        tokens = Tokens(embedding=states(10).view(2, 5, DIM))
        assert torch.equal(chained(tokens).tokens.embedding, plain(tokens).tokens.embedding)


def test_every_map_learns_from_its_own_layer_and_all_later_ones() -> None:
    from modalities.base import Tokens

    model = trunk({"type": "residual"})
    maps = [gate.get_parameter("map") for gate in gates(model)[1:]]
    records = model(Tokens(embedding=states(10).view(2, 5, DIM))).records
    reached = [
        [g is not None and bool(g.any()) for g in torch.autograd.grad(
            record.routing.raw.square().sum(), maps, retain_graph=True, allow_unused=True)]
        for record in records[1:]
    ]  # fmt: skip
    assert reached[0] == [True, False] and reached[1] == [True, True]


@pytest.mark.parametrize("router", [PAPER, RELEASED])
def test_the_gate_before_learns_through_the_logits_alone(router: dict[str, Any]) -> None:
    first, second = (layer({**router, "gate": {"type": "residual"}}, **CHEAP) for _ in range(2))
    second.router.link([first.router])
    with torch.no_grad():
        second.router.get_parameter("gate.map").normal_(generator=torch.Generator().manual_seed(4))
    x = states(12)
    before = first.route(x, context(12))  # its output goes nowhere
    out = second(states(12, 5), context(12, carry=before.carry))
    busy = (out.routing.expert != 2).all(-1)  # no zero expert: the released gates move only there
    assert bool(busy.any())
    (found,) = torch.autograd.grad(out.y[busy].sum(), [first.router.get_parameter("gate.gate.weight")])
    assert bool(found.any())
