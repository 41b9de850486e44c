"""Checks of capacity policies and of specialisation, on a model small enough to train within a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from training.claims.capacity import CapacityOrderSpec, CapacityQualitySpec, CapacitySpeedSpec, under
from training.claims.domains import MIRROR, DomainsBesideSpec, DomainsEvenSpec, SpecialisationSpec, information
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.moe.policies.capacity import CapacitySpec
from zoo.spec import parse

Write = Callable[..., Entry]
DROP = {"type": "capacity", "inference": True}


def checked(kind: Any, entry: Entry, budget: dict[str, Any], **keys: Any) -> Finding:
    found: Finding = parse(kind, {"train": budget, **keys}).check(entry, progress=False)
    return found


def test_enough_capacity_costs_nothing(entry: Write, budget: dict[str, Any]) -> None:
    keys = {"policy": {**DROP, "factor": 4.0}, "factors": [4.0, 0.25], "at_most": 0.0}
    found = checked(CapacityQualitySpec, entry(), budget, **keys)
    assert found.holds and found.figure == 0.0
    assert "4: +0.0000 at 0.0% dropped" in found.note and "0.25: " in found.note
    harsh = checked(
        CapacityQualitySpec, entry(), budget, **{**keys, "policy": {**DROP, "factor": 0.25}, "at_most": -1.0}
    )
    assert not harsh.holds


def test_the_order_of_policies(entry: Write, budget: dict[str, Any]) -> None:
    same = {"a": DROP, "b": DROP}
    found = checked(CapacityOrderSpec, entry(), budget, policies=same, factors=[1.0])
    assert found.holds and found.figure == 0.0 and found.note.startswith("nats per byte at factor 1: a ")
    assert checked(CapacityOrderSpec, entry(), budget, policies=same, factors=[1.0], slack=-0.1).holds is False


def test_the_busiest_device_waits_for_less(entry: Write, budget: dict[str, Any]) -> None:
    keys = {"policy": {**DROP, "factor": 0.5, "level": "device", "devices": 2}, "devices": 2, "at_least": 1.5}
    found = checked(CapacitySpeedSpec, entry(), budget, **keys)
    assert found.holds and found.figure >= 2.0  # at least half of all slots lie on the busier of two devices
    assert not checked(CapacitySpeedSpec, entry(), budget, **{**keys, "at_least": 9.0}).holds


def test_the_layers_get_their_policies_back(entry: Write, language: Callable[..., Any]) -> None:
    from zoo.models.unified import ModelSpec

    torch.manual_seed(0)
    layers = parse(ModelSpec, language()).build().moe_layers()  # type: ignore[operator]
    before = [layer.spec for layer in layers]
    with under(layers, (CapacitySpec(factor=0.5),)):
        assert all(layer.spec.policy for layer in layers)
    assert [layer.spec for layer in layers] == before


def test_information_of_domains() -> None:
    assert information(np.array([[5.0, 0.0], [0.0, 2.0]])) == pytest.approx(np.log(2))
    assert information(np.array([[3.0, 1.0], [6.0, 2.0]])) == pytest.approx(0.0, abs=1e-12)
    assert "Zebra".translate(MIRROR) == "Avyiz"


def test_specialisation_beside_an_exchange(entry: Write, budget: dict[str, Any]) -> None:
    keys, budget = {"overrides": {"backbone.layers.0.block.ffn.router.k": 3}}, {**budget, "rows": 4, "held_out": 8}
    found = checked(SpecialisationSpec, entry(), budget, **keys, at_least=0.0)
    assert found.holds and found.figure > 0 and "greatest over mean load" in found.note
    assert not checked(SpecialisationSpec, entry(), budget, **keys, at_least=1e9).holds
    assert checked(DomainsEvenSpec, entry(), budget, at_most=4.0).holds
    assert not checked(DomainsEvenSpec, entry(), budget, at_most=0.5).holds
    beside = {"figure": "loss", "overrides": keys["overrides"]}
    found = checked(DomainsBesideSpec, entry(), budget, **beside, below=9.0)
    assert (
        found.holds
        and found.figure != 0
        and not checked(DomainsBesideSpec, entry(), budget, **beside, below=-9.0).holds
    )
