"""What is decayed, and schedules."""

from __future__ import annotations

from typing import Any

import pytest

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
        f"{block}ffn.router.weight",
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
