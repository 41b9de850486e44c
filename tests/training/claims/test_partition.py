"""A partition that a gate is to find again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from training.claims.partition import PartitionSpec
from zoo.hub.entries import Entry
from zoo.moe.gates.activation import ActivationGateSpec
from zoo.moe.gates.temperature import TemperatureSpec
from zoo.spec import SpecError, parse

GATE = "backbone.layers.0.block.ffn.router.gate"
SMALL: dict[str, Any] = {"gate": GATE, "overrides": {"init_std": 0.5}, "sizes": [40], "replicates": 1, "steps": 3}


def test_a_gate_finds_two_halves() -> None:
    torch.manual_seed(0)
    spec = parse(PartitionSpec, {"gate": GATE, "overrides": {}, "parts": 2, "dim": 2})
    x, fresh = torch.randn(500, 2), torch.randn(300, 2)
    y = torch.where(x[:, 0] > 0, x[:, 1], -x[:, 1])
    gate = ActivationGateSpec(temperature=TemperatureSpec(learn=True), init_std=0.5)
    best = spec._fit(gate, x, y, fresh)
    agree = float(((fresh[:, 0] > 0).long() == best).double().mean())
    assert max(agree, 1 - agree) > 0.9


def test_a_gate_beside_another(entry: Callable[..., Entry]) -> None:
    one = entry(router={"type": "top_k", "k": 2, "gate": {"type": "linear"}})
    found = parse(PartitionSpec, SMALL).check(one)
    assert found.holds == (found.figure >= 0) and found.expected.endswith("at 40 samples at least 0")
    same = parse(PartitionSpec, {**SMALL, "overrides": {"init_std": 0.02}}).check(one)
    assert same.figure == 0 and same.holds
    with pytest.raises(SpecError, match="parts: got 1"):
        parse(PartitionSpec, {**SMALL, "parts": 1})
