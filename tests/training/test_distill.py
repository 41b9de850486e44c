"""A pre-gate learns from the gates of a trained model, and nothing else does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import zoo
from training.distill import RouteTeacher, route_distillation
from zoo.models.unified import Unified
from zoo.spec import override

ROUTER = "backbone.layers.0.block.ffn.router"


def plain() -> dict[str, Any]:
    trunk = {
        "dim": 8,
        "layers": [
            {"block": {"type": "sequential", "attention": {"heads": 2}, "ffn": {"type": "dense", "hidden": 16}}}
        ],
    }
    gate = {"type": "pre_gated", "vocab": 259, "trunk": trunk}
    ffn = {
        "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8},
        "router": {"type": "top_k", "k": 1, "allow_constant": True, "gate": gate},
    }  # fmt: skip
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    return {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {"text": {"type": "text", "length": 16}},
    }


def gated() -> dict[str, Any]:
    """With a gate of its own in each layer."""
    return override(plain(), {ROUTER: {"normalize": "all", "gate": {"type": "linear", "init_std": 1.0}}})


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A teacher, saved."""
    import yaml

    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump({"spec": gated()}))
    save_file(zoo.create(gated(), seed=5).state_dict(), tmp_path / "teacher.safetensors")
    return {"spec": str(tmp_path / "teacher.yaml"), "weights": str(tmp_path / "teacher.safetensors")}


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0))
    return {"ids": ids, "mask": torch.ones(4, 16, dtype=torch.bool)}


def records(model: Unified) -> Any:
    return model.run(model.modality("text").encode(batch()), "text").records


def test_the_loss_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0, -1.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 2.0, 0.0], [9.0, 0.0, 0.0]], dtype=torch.float64)
    logp = student[0].log_softmax(-1)
    smoothed = torch.tensor([1 / 6, 1 / 2 + 1 / 6, 1 / 6], dtype=torch.float64)
    expected = -(0.75 * (smoothed * logp).sum() + 0.25 * (teacher[0].softmax(-1) * logp).sum())
    found = route_distillation(student, teacher, torch.tensor([True, False]), 0.75, 0.5)
    torch.testing.assert_close(found, expected)
    even = route_distillation(student[1:], teacher[1:], torch.tensor([True]), 0.3, 0.0)
    assert float(even) == pytest.approx(math.log(3))


def test_its_gradient_reaches_the_router_only(settings: dict[str, Any]) -> None:
    model = zoo.create(plain(), seed=0)
    teacher = RouteTeacher(settings, model)
    teacher.losses(("text", batch()), records(model))["distill"].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached and all(".router.gate.network." in name for name in reached)
    assert teacher.model is not None and all(p.grad is None for p in teacher.model.parameters())


def test_the_pre_gate_comes_to_agree_with_the_gates(settings: dict[str, Any]) -> None:
    model = zoo.create(plain(), seed=0)
    teacher = RouteTeacher({**settings, "hard": 0.0}, model)
    optimiser = torch.optim.AdamW(model.moe_layers()[0].router.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = teacher.losses(("text", batch()), records(model))["distill"]
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 10
    assert teacher.model is not None
    theirs = sum(record.routing.logits.softmax(-1) for record in records(teacher.model)).argmax(-1)
    agreed = (records(model)[0].routing.expert[:, 0] == theirs).double().mean()
    assert float(agreed) > 0.5  # of four experts


def test_a_teacher_of_other_layers_is_refused(settings: dict[str, Any]) -> None:
    other = override(plain(), {"backbone.layers.0.repeat": 3})
    with pytest.raises(
        ValueError, match=r"distill\.spec: has MoE layers of \[4, 4\] experts, the model of \[4, 4, 4\]"
    ):
        RouteTeacher(settings, zoo.create(other))
    with pytest.raises(ValueError, match=r"distill\.hard: got 2\.0"):
        RouteTeacher({**settings, "hard": 2.0}, zoo.create(plain()))
