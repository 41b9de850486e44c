"""Claims about adapters on a model trained before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import zoo
from training.claims.adapting import AdapterBetterSpec, AdapterPruningSpec, AdapterRedundancySpec, distances, trained
from training.claims.budget import Budget
from zoo.backbone.adapters.lora_experts import LoraExpertsOfBlock
from zoo.hub.entries import Entry, read_entry


@pytest.fixture
def adapted(tmp_path: Path) -> Entry:
    """An entry of a dense model with an adapter."""
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": {"type": "dense", "hidden": 12}}
    adapter = {"type": "lora_experts", "counts": [2, 3], "ranks": 2, "balance": [{"type": "switch"}]}
    spec: dict[str, Any] = {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 2, "block": block}], "adapter": adapter},
        "modalities": {"text": {"type": "text", "length": 32}},
    }
    path = tmp_path / "adapted.yaml"
    path.write_text(yaml.safe_dump({"spec": spec}))
    return read_entry(path)


def test_the_adapter_learns_and_the_base_stays(adapted: Entry, budget: dict[str, Any]) -> None:
    budget = {**budget, "data": tuple(budget["data"])}
    claim = AdapterBetterSpec(
        overrides={"backbone.adapter.counts": [3, 2]}, base=Budget(**budget), train=Budget(**budget)
    )
    finding = claim.check(adapted, progress=False)
    assert "trained parameters" in finding.note and finding.expected.startswith("loss minus the other's below")
    own, other = (claim.tuned(adapted, more, 0, False).model for more in ({}, claim.overrides))
    base = {name: value for name, value in own.state_dict().items() if ".adapter." not in name}
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in base.items())
    assert all(distance > 0 for distance in distances(own))
    assert trained(own) == trained(other)


def test_distances_by_hand(adapted: Entry) -> None:
    model = zoo.create(adapted.spec)
    with torch.no_grad():
        for adapter in (m for m in model.modules() if isinstance(m, LoraExpertsOfBlock)):
            for name in adapter.places:
                experts = adapter.layer(name).experts
                experts.a.fill_(1)  # type: ignore[operator]
                for i in range(experts.count):
                    experts.b[i].fill_(i)  # type: ignore[index]
    # products are constant matrices of alpha / r * r * i = 16 i over 16 x 16 entries
    assert distances(model) == pytest.approx([256.0, 256.0 * 4 / 3])


def test_redundancy_is_a_rank_correlation(adapted: Entry, budget: dict[str, Any]) -> None:
    budget = {**budget, "data": tuple(budget["data"])}
    claim = AdapterRedundancySpec(base=Budget(**budget), train=Budget(**budget))
    finding = claim.check(adapted, progress=False)
    assert abs(finding.figure) == pytest.approx(1) and "by layer" in finding.note


def test_pruning_silences_one_half_at_a_time_and_gives_it_back(adapted: Entry, budget: dict[str, Any]) -> None:
    budget = {**budget, "data": tuple(budget["data"])}
    claim = AdapterPruningSpec(base=Budget(**budget), train=Budget(**{**budget, "lr": 1e-1}))
    model = claim.tuned(adapted, {}, 0, False).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finding = claim.check(adapted, progress=False)
    assert finding.figure != 0 and finding.expected.startswith("more than")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
