"""Experts spawned from a dense network (EvoMoE's expert-diversify phase): equal without a change, unlike with one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from training.kept_zeros import keep_zeros
from zoo.laws.cases import make_tokens
from zoo.models.unified import ModelSpec, Unified
from zoo.moe.layer import MoE
from zoo.spec import override, parse
from zoo.surgery.base import State
from zoo.surgery.spawn import SpawnSpec

FFN = "backbone.layers.0.block.ffn"
TO_ONE = {"type": "dense_to_sparse", "threshold": 0.0, "hard": None, "temperature": {"start": 1.0}}


def plain(router: dict[str, Any] | None = None, bias: bool = False) -> dict[str, Any]:
    """Two layers of four experts of size 12."""
    ffn = {
        "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 12, "bias": bias},
        "router": router or TO_ONE,
    }  # fmt: skip
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    return {
        "type": "unified",
        "backbone": {"dim": 8, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {"text": {"type": "text"}},
    }


def dense_plain(bias: bool = False) -> dict[str, Any]:
    return override(plain(bias=bias), {FFN: {"type": "dense", "hidden": 12, "bias": bias}})


def built(described: dict[str, Any], seed: int) -> Unified:
    torch.manual_seed(seed)
    model = parse(ModelSpec, described).build()
    assert isinstance(model, Unified)
    return model.double().eval()


def spawned(router: dict[str, Any] | None = None, bias: bool = False, **keys: Any) -> tuple[Unified, Unified]:
    """The dense model and what was made of it."""
    dense, model = built(dense_plain(bias), 1), built(plain(router, bias), 2)
    for name, value in dense.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value)
    surgery = SpawnSpec(stage="dense", **keys)
    surgery.check(model.spec, {"dense": dense.spec})
    _, state = surgery.apply(model.spec, model.state_dict(), {"dense": (dense.spec, dense.state_dict())})
    model.load_state_dict(state)
    return dense, model


def states(model: Unified) -> Tensor:
    with torch.no_grad():
        return model.backbone(make_tokens(2, 7, 8, 3, torch.float64)).tokens.embedding


def experts(model: Unified) -> State:
    """Stacked weights of the first layer by key."""
    return {
        n.rpartition(".")[2]: v for n, v in model.state_dict().items() if n.startswith("backbone.blocks.0.ffn.experts.")
    }


@pytest.mark.parametrize("weights", ["noise_free", "gumbel"])
@pytest.mark.parametrize("threshold", [0.0, 0.001])
def test_without_a_change_outputs_are_those_of_the_dense_model(weights: str, threshold: float) -> None:
    dense, model = spawned({**TO_ONE, "weights": weights, "threshold": threshold}, share=0.0, bias=True)
    torch.testing.assert_close(states(model), states(dense), atol=1e-12, rtol=0)


@pytest.mark.parametrize("hard", [None, 0])
@pytest.mark.parametrize("weights", ["noise_free", "gumbel"])
def test_below_the_threshold_the_answer_is_the_dense_one_times_the_kept_weights(weights: str, hard: int | None) -> None:
    router = {**TO_ONE, "threshold": 0.15, "temperature": {"start": 0.4}, "weights": weights, "hard": hard}
    dense, model = spawned(router, share=0.0)
    layer, network = model.moe_layers()[0], dense.backbone.blocks[0].ffn
    torch.nn.init.normal_(layer.router.gate.weight)  # type: ignore[union-attr,arg-type]
    x = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    from zoo.moe.routing import RoutingContext

    with torch.no_grad():
        out = layer(x, RoutingContext(shape=(1, 30), mask=torch.ones(30, dtype=torch.bool)))
        total = out.routing.gate.sum(-1, keepdim=True)
        torch.testing.assert_close(out.y, total * network(x), atol=1e-12, rtol=0)  # type: ignore[operator]
    assert float(total.mean()) < 0.99


@pytest.mark.parametrize("rescale", [False, True])
def test_masks_are_each_experts_own_and_leave_biases(rescale: bool) -> None:
    dense, model = spawned(share=0.3, rescale=rescale, bias=True)
    source = dense.state_dict()
    for key, value in experts(model).items():
        old = source[f"backbone.blocks.0.ffn.{key}"].expand_as(value)
        if key.endswith("bias"):
            assert torch.equal(value, old)
            continue
        kept = value != 0
        assert float((~kept).double().mean()) == pytest.approx(0.3, abs=0.06)
        torch.testing.assert_close(value[kept], old[kept] / (0.7 if rescale else 1))
        assert all(not torch.equal(kept[0], kept[i]) for i in range(1, 4))
    assert torch.equal(model.state_dict()["backbone.norm.weight"], source["backbone.norm.weight"])


def test_noise_is_a_share_of_the_weights_deviation() -> None:
    dense, model = spawned(mode="noise", share=0.5)
    old = dense.state_dict()["backbone.blocks.0.ffn.gate_up"]
    moved = experts(model)["gate_up"] - old
    assert float(moved.std() / old.std()) == pytest.approx(0.5, abs=0.05)


def test_zeros_of_the_dense_network_keep_their_moments() -> None:
    """A bias that is still zero, say, which no mask touches."""
    dense, experts = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
    kept = SpawnSpec(stage="dense", share=0.5, rescale=True)._kept(experts, dense)
    assert kept.tolist() == [[1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"mode": "mask_once"}, 0.7),
        ({"mode": "mask_once", "rescale": True}, 0.7),
        ({"mode": "noise"}, 1.0),
        ({"mode": "reinit", "share": 0.5}, 0.5),
        ({"share": 0.0}, 1.0),
    ],
)
def test_copies_take_the_moments_of_what_they_copy(keys: dict[str, Any], part: float) -> None:
    """Masked as the weights are; what counts steps goes on; gates begin anew."""
    dense, model = spawned(**keys)
    surgery, found = SpawnSpec(stage="dense", optimiser="carried", **keys), dense.state_dict()
    assert surgery.remembered() == ("dense",) and SpawnSpec(stage="dense", **keys).remembered() == ()
    moments = {name: torch.rand_like(value) + 1 for name, value in found.items()}
    carried = surgery.moments(model.state_dict(), {"dense": found}, {"dense": moments})
    assert carried.keys() == {n for n in model.state_dict() if ".router." not in n}
    for name, value in carried.items():
        source = name.replace(".ffn.experts.", ".ffn.")
        kept = value != 0
        assert torch.equal(value[kept], moments[source].expand_as(value)[kept])
        assert float(kept.double().mean()) == pytest.approx(part if source != name else 1.0, abs=0.06)
    steps = {"dense": {name: torch.tensor(7.0) for name in found}}
    assert {float(v) for v in surgery.moments(model.state_dict(), {"dense": found}, steps).values()} == {7.0}


def test_channels_are_drawn_anew_in_both_maps() -> None:
    dense, model = spawned(mode="reinit", share=0.5)
    source, found = dense.state_dict(), experts(model)
    for expert in range(4):
        up = (found["gate_up"][expert] != source["backbone.blocks.0.ffn.gate_up"]).all(-1)
        down = (found["down"][expert] != source["backbone.blocks.0.ffn.down"]).all(0)
        assert int(down.sum()) == 6 and torch.equal(up[:12], down) and torch.equal(up[12:], down)
    again = spawned(mode="reinit", share=0.5)[1]
    assert all(torch.equal(v, found[k]) for k, v in experts(again).items())


def _spread(layer: MoE, steps: int = 5) -> float:
    """How unlike the experts of a layer are after plain gradient steps under an even gate."""
    torch.nn.init.zeros_(layer.router.gate.weight)  # type: ignore[union-attr,arg-type]
    x = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    from zoo.moe.routing import RoutingContext

    ctx = RoutingContext(shape=(1, 40), mask=torch.ones(40, dtype=torch.bool))
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(steps):
        optimiser.zero_grad()
        (layer(x, ctx).y - x.roll(1, 1)).square().mean().backward()
        optimiser.step()
    experts: Any = layer.experts
    weight: Tensor = experts.gate_up.detach()
    return float((weight - weight[:1]).abs().max())


def test_equal_copies_under_an_even_gate_never_part() -> None:
    assert _spread(spawned(share=0.0)[1].moe_layers()[0]) < 1e-15
    assert _spread(spawned(share=0.3)[1].moe_layers()[0]) > 1e-2


def test_kept_masks_hold_while_it_trains() -> None:
    surgery, (_, model) = SpawnSpec(stage="dense", mode="mask_kept"), spawned(mode="mask_kept")
    assert not SpawnSpec(stage="dense").keeps_zeros("backbone.blocks.0.ffn.experts.down")
    held = {n: p for n, p in model.named_parameters() if surgery.keeps_zeros(n)}
    zeros = {name: p.detach() == 0 for name, p in held.items()}
    assert len(held) == 4
    for parameter in held.values():
        keep_zeros(parameter)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(4):
        optimiser.zero_grad()
        model.backbone(make_tokens(2, 7, 8, 3, torch.float64)).tokens.embedding.square().sum().backward()
        optimiser.step()
    for name, parameter in held.items():
        assert torch.equal(parameter.detach() == 0, zeros[name])


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"share": 1.0}, "share: got"), ({"mode": "noise", "rescale": True}, "rescale: only masks")],
)
def test_wrong_keys_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SpawnSpec(stage="dense", **keys)


def test_a_source_of_another_width_is_refused() -> None:
    narrow = parse(ModelSpec, override(dense_plain(), {f"{FFN}.hidden": 10}))
    with pytest.raises(ValueError, match=r"stage: .*needs a dense network of \(24, 8\) in 'dense', found \(20, 8\)"):
        SpawnSpec(stage="dense").check(parse(ModelSpec, plain()), {"dense": narrow})
