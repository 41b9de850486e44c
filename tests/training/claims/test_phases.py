"""A dense phase before the experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from training.claims.phases import PhasesSpec
from zoo.hub.entries import Entry
from zoo.spec import SpecError, parse

FFN = "backbone.layers.0.block.ffn"


def keys(budget: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "train": budget, "first": 1, "dense": {FFN: {"type": "dense", "hidden": 8}}, "later": {f"{FFN}.router.k": 1,
        f"{FFN}.router.normalize": "all"}, "enter": {"type": "spawn", "stage": "dense"}, **more,
    }  # fmt: skip


def test_experts_begin_as_unlike_copies(entry: Callable[..., Entry], budget: dict[str, Any]) -> None:
    found = parse(PhasesSpec, keys(budget, figure="expert_cosine")).check(entry(), progress=False)
    before, after = (float(word.rstrip(",;")) for word in found.note.split() if word[:2] == "0.")
    assert before == pytest.approx(0.7, abs=0.05), "masks of 0.3 of the entries, each expert's own"
    assert found.figure == pytest.approx(after - before, abs=2e-4) and found.holds == (found.figure < 0)
    loss = parse(PhasesSpec, keys(budget, figure="loss")).check(entry(), progress=False)
    assert "alone" in loss.note and loss.expected.startswith("loss minus the other's at most +")


def test_phases_that_cannot_be(budget: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"first: got 3, expected 1\.\.2 of 3 steps"):
        parse(PhasesSpec, keys(budget, figure="loss", first=3))
    with pytest.raises(SpecError, match="enter: takes from"):
        parse(PhasesSpec, keys(budget, figure="loss", enter={"type": "spawn", "stage": "other"}))
