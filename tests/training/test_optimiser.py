"""What is decayed, and schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training import optimiser
from training.schedule import Schedule


def test_norms_biases_routers_and_tables_are_not_decayed(tiny: Any) -> None:
    spec = tiny.spec()
    ffn = spec["backbone"]["layers"][0]["block"]["ffn"]
    ffn["shared"] = {"count": 1, "hidden": 8, "gate": "sigmoid"}
    ffn["null_experts"] = {"zero": 1, "constant": 1}
    spec["backbone"]["layers"][0]["block"]["attention"]["qk_norm"] = True
    spec["backbone"]["rope"] = {"axes": 2}
    spec["modalities"]["vision"] = {"type": "vision", "size": 8, "channels": 1, "tower": {"type": "patch", "patch": 4}}
    model = tiny.module(spec).model
    spared = optimiser.undecayed(model, embeddings=False)
    block = "backbone.blocks.0."
    held = (
        f"{block}attention_norm.weight",
        "backbone.norm.weight",
        f"{block}ffn.router.gate.weight",
        f"{block}ffn.null_experts.mix",
        f"{block}ffn.null_experts.value",
        f"{block}ffn.shared_experts.gate",
        "modalities.text.embedding.weight",
        "modalities.vision.query",
        "modalities.vision.head.bias",
    )
    for name in held:
        assert name in spared, name
    for name in (block + "ffn.shared_experts.down", "modalities.text.head.weight", "modalities.vision.head.weight"):
        assert name not in spared, name
    assert not any(".experts." in name and "null" not in name for name in spared)
    assert "modalities.text.embedding.weight" not in optimiser.undecayed(model, embeddings=True)


def test_every_parameter_that_trains_is_in_one_group(tiny: Any) -> None:
    model = tiny.module(trainable=["router", "head"]).model
    parts = list(optimiser.groups(model, 0.1, embeddings=False))
    held = [id(p) for part in parts for p in part["params"]]  # type: ignore[attr-defined]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [part["weight_decay"] for part in parts] == [0.1, 0.0]


def test_learning_rates_follow_the_width(tiny: Any) -> None:
    """At four times the width of the proxy matrices train at lr / 4; tables, norms and biases at lr."""
    model = tiny.module().model
    names = {id(p): name for name, p in model.named_parameters()}
    for decay in (0.1, 0.0):
        parts = list(optimiser.groups(model, decay, embeddings=False, width=optimiser.width_factor(16, 4)))
        scale = {names[id(p)]: part["scale"] for part in parts for p in part["params"]}  # type: ignore[attr-defined]
        assert scale.keys() == set(names.values()) and sum(len(part["params"]) for part in parts) == len(scale)  # type: ignore[arg-type,misc]
        assert scale["modalities.text.embedding.weight"] == scale["backbone.norm.weight"] == 1.0
        assert {v for k, v in scale.items() if "time_series.embedding" in k} == {1.0}  # maps of 4 values, not of states
        for name in ("ffn.router", "ffn.experts.down", "attention.o", "time_series.heads"):
            assert {v for k, v in scale.items() if name in k} == {0.25}, name
    assert {part["scale"] for part in optimiser.groups(model, 0.1, embeddings=False)} == {1.0}


def test_a_step_is_taken_at_the_rate_of_its_group(tiny: Any) -> None:
    """Adam's first step is as long as the learning rate: down a quarter for matrices, not for the table."""
    found = {}
    for tuned in (None, 4):
        module = tiny.module(tuned_width=tuned, weight_decay=0.0, clip=None, eps=1e-16)
        before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
        tiny.train(module, [tiny.steps(module, [("text", range(4))])])
        moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in module.model.named_parameters()}
        found[tuned] = moved
    for name in ("modalities.text.embedding.weight", "backbone.norm.weight"):
        assert found[4][name] == pytest.approx(found[None][name], rel=1e-4) == pytest.approx(1e-2, rel=1e-2)
    name = "backbone.blocks.0.ffn.experts.down"
    assert found[4][name] == pytest.approx(found[None][name] / 4, rel=1e-3)


def test_initial_deviations_follow_the_width(tiny: Any) -> None:
    from training.module import UnifiedModule

    spec = tiny.spec()
    spec["backbone"]["dim"] = 64
    plain, drawn = (UnifiedModule(spec, init_std=std, tuned_width=16).model for std in (None, 0.02))
    states = dict(plain.named_parameters())
    for name, parameter in drawn.named_parameters():
        if parameter.ndim < 2 or "time_series.embedding" in name:
            assert torch.equal(parameter, states[name]), name
        elif parameter.numel() > 1000:
            wanted = 0.02 if name == "modalities.text.embedding.weight" else 0.01
            assert float(parameter.detach().std()) == pytest.approx(wanted, rel=0.1), name


@pytest.mark.parametrize(("keys", "reason"), [({"tuned_width": 0}, "tuned_width"), ({"init_std": -1.0}, "init_std")])
def test_impossible_widths_and_deviations_are_refused(tiny: Any, keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny.module(**keys)


@pytest.mark.parametrize(("eps", "share"), [(1e-16, 1.0), (1e-8, 1e-4)])
def test_a_small_epsilon_moves_weights_whose_gradients_are_small(tiny: Any, eps: float, share: float) -> None:
    """LongCat-Flash's 1e-16: at a gradient of 1e-12 the usual 1e-8 takes away all but a ten-thousandth of the step."""
    module = tiny.module(eps=eps)
    built = optimiser.build(
        module.model, lr=1.0, betas=(0.9, 0.95), eps=module.hparams["eps"], weight_decay=0.0, embeddings=False
    )
    before = {name: p.detach().double() for name, p in module.model.named_parameters()}
    for parameter in module.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-12)
    built.step()
    for name, parameter in module.model.named_parameters():
        moved = before[name] - parameter.detach().double()
        torch.testing.assert_close(moved, torch.full_like(moved, share), atol=1e-6, rtol=2e-3)


def test_cosine_warms_up_and_ends_at_its_floor() -> None:
    schedule = Schedule(kind="cosine", warmup=10, floor=0.1)
    assert schedule.factor(0, 110) == pytest.approx(0.1)
    assert schedule.factor(9, 110) == schedule.factor(10, 110) == 1
    assert schedule.factor(60, 110) == pytest.approx(0.55)
    assert schedule.factor(110, 110) == schedule.factor(500, 110) == pytest.approx(0.1)


def test_wsd_is_stable_then_decays() -> None:
    schedule = Schedule(kind="wsd", warmup=2, decay=10, floor=0.0)
    assert [schedule.factor(s, 100) for s in (0, 1, 2, 50, 90)] == [0.5, 1, 1, 1, 1]
    assert schedule.factor(95, 100) == pytest.approx(0.5)
    assert schedule.factor(99, 100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "warmup: got -1"),
        ({"floor": 1.5}, "floor: got 1.5"),
        ({"decay": 5}, "decay: belongs to schedule wsd"),
    ],
)
def test_impossible_schedules(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**settings)


def test_a_schedule_longer_than_the_run() -> None:
    with pytest.raises(ValueError, match="more than the run's 10 steps"):
        Schedule(kind="wsd", warmup=6, decay=6).check(10)
    with pytest.raises(ValueError, match="needs the number of steps"):
        Schedule(kind="cosine").check(-1)
