"""Routers that look back over the layers: what may follow what, what a trunk of them costs, and mixes of systems."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modalities.base import Tokens
from zoo import registry
from zoo.backbone.blocks.base import BlockSpec, Place
from zoo.backbone.trunk import BackboneSpec
from zoo.laws.cases import LayerCase, TrunkCase
from zoo.laws.examples import variants
from zoo.laws.suite import run
from zoo.spec import Plain, SpecError, parse

DIM = 8
RESIDUAL: Plain = {"type": "residual"}
RECURRENT: Plain = {"type": "recurrent", "state": 5}


def block(gate: Plain | None = None, routed: int = 4, **router: Any) -> Plain:
    described = {"type": "top_k", "k": 2, **({} if gate is None else {"gate": gate}), **router}
    ffn = {"type": "moe", "routed": routed, "experts": {"type": "swiglu", "hidden": 6}, "router": described}
    return {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}


def trunk(*blocks: Plain, repeat: int = 1) -> BackboneSpec:
    return parse(BackboneSpec, {"dim": DIM, "layers": [{"repeat": repeat, "block": b} for b in blocks]})


@pytest.mark.parametrize("gate", [RESIDUAL, RECURRENT, {"type": "warm_up", "gate": RESIDUAL}])
def test_another_number_of_experts_is_refused(gate: Plain) -> None:
    with pytest.raises(SpecError, match=r"^layers\[1\]\.block\.ffn\.router\.gate\.type: it looks back at a layer of 4"):
        trunk(block(gate), block(gate, routed=6))


@pytest.mark.parametrize("gate", [RESIDUAL, RECURRENT])
def test_another_gate_before_it_is_refused(gate: Plain) -> None:
    for before in (block(), block(RECURRENT if gate is RESIDUAL else RESIDUAL)):
        with pytest.raises(SpecError, match=r"layers\[1\]\.block\.ffn\.router\.gate\.type: .*expected one of the same"):
            trunk(before, block(gate))
    trunk(block(gate), block())  # the other way round is no matter


def test_another_width_of_the_state_is_refused() -> None:
    with pytest.raises(SpecError, match=r"layers\[1\]\.block\.ffn\.router\.gate\.state: got 6, but .* passes on 5"):
        trunk(block(RECURRENT), block({"type": "recurrent", "state": 6}))


def test_every_rule_and_wrapper_follows_its_own_kind() -> None:
    warmed = {"type": "warm_up", "gate": RESIDUAL}
    trunk(block(RESIDUAL), block(warmed), block(RESIDUAL, type="sparse_mixer"))


def test_attention_whose_heads_are_experts_cannot_look_back() -> None:
    attention = {
        "type": "selective",
        "heads": 2,
        "router": {"type": "top_k", "k": 1, "normalize": "all", "gate": RESIDUAL},
    }
    with pytest.raises(SpecError, match=r"layers\[0\]\.block\.attention\.router\.gate: reads the MoE layer before"):
        trunk({"type": "sequential", "attention": attention, "ffn": {"type": "dense", "hidden": 4}})


def test_one_choice_for_a_sequence_refuses_gates_that_part_its_tokens() -> None:
    with pytest.raises(SpecError, match=r"router\.gate: expected one without noise that reads its input alone"):
        trunk(block(RESIDUAL, type="sequence_choice"))


GATES = [
    RESIDUAL, {"type": "residual", "gate": {"type": "mlp"}}, RECURRENT, {"type": "mlp", "hidden": 5},
    {"type": "activation"}, {"type": "warm_up", "gate": RECURRENT}, {"bias": True},
]  # fmt: skip


@pytest.mark.parametrize("gate", GATES)
def test_the_stated_parameters_are_those_held(gate: Plain) -> None:
    spec = trunk(block(gate), repeat=3)
    assert spec.cost().total == sum(p.numel() for p in spec.build().parameters())


@pytest.mark.parametrize("name", registry.names("block"))
def test_blocks_list_their_moe_layers_in_order(name: str) -> None:
    for _, plain in variants("block", name):
        try:
            spec = parse(BlockSpec, plain)
        except SpecError:
            continue  # a choice that needs another key too
        built = spec.build(DIM, Place(0, 0, 1e-6, 3 if spec.conditioned else 0))
        assert [moe.pool for _, moe in spec.mixtures()] == [layer.pool for layer in built.moes]


def mixed(gate: Plain) -> BackboneSpec:
    """Null experts, grouped selection, balance over the whole step, and a router that looks back."""
    plain = block(gate, 4, k=2, groups=2, top_groups=2, bias=True)
    plain["ffn"] |= {
        "null_experts": {"zero": 1, "copy": 1}, "shared": {"count": 1, "hidden": 4},
        "balance": [{"type": "switch", "scope": "global", "null_weight": 0.75}, {"type": "bias"}],
    }  # fmt: skip
    return trunk(plain, repeat=2)


@pytest.mark.parametrize("gate", [RESIDUAL, RECURRENT, {"type": "warm_up", "gate": RECURRENT}])
def test_mixes_of_systems_obey_every_law(gate: Plain) -> None:
    spec = mixed(gate)
    ffn = spec.layers[0].block.mixtures()[0][1]
    cases = [TrunkCase("trunk", spec), LayerCase("layer", ffn)]
    broken = [result for result in run(cases=cases) if result.outcome != "held"]
    assert not broken


def test_a_saved_trunk_opens_again_and_answers_alike() -> None:
    spec = trunk(block(RECURRENT), repeat=3)
    torch.manual_seed(0)
    one, two = spec.build(), spec.build()
    two.load_state_dict(one.state_dict())
    tokens = Tokens(embedding=torch.randn(1, 4, DIM))
    assert torch.equal(one(tokens).tokens.embedding, two(tokens).tokens.embedding)
