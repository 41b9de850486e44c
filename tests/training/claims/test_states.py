"""Checks of hidden states, of the gradient of balance, and of learning rates that are taken over."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from training.claims.states import GradientRatioSpec, HiddenStatesSpec
from training.claims.transfer import RateTransferSpec
from training.stepping import DivergedError
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.spec import SpecError, parse

Write = Callable[..., Entry]


def checked(kind: Any, entry: Entry, budget: dict[str, Any], **keys: Any) -> Finding:
    found: Finding = parse(kind, {"train": budget, **keys}).check(entry, progress=False)
    return found


def test_a_strong_hidden_z_loss_keeps_states_small(entry: Write, budget: dict[str, Any]) -> None:
    budget = {**budget, "steps": 6, "lr": 5e-2}
    found = checked(HiddenStatesSpec, entry(), budget, weight=0.1, slack=9.0)
    assert found.holds and 0 < found.figure < 0.8 and "greatest value" in found.note
    assert not checked(HiddenStatesSpec, entry(), budget, weight=0.1, slack=-9.0).holds
    assert checked(HiddenStatesSpec, entry(), {**budget, "steps": 2}, weight=0.0).figure == 1.0


def test_the_gradient_ratio_follows_the_weight(entry: Write, budget: dict[str, Any]) -> None:
    def ratio(weight: float) -> Finding:
        switch = {"type": "switch", "weight": weight}
        return checked(GradientRatioSpec, entry(balance=[switch]), {**budget, "steps": 2}, at_most=1e9)

    small, great = ratio(1e-6), ratio(1e-4)
    assert small.holds and 0 < small.figure < great.figure < 200 * small.figure
    assert small.note.count(",") == 1 + small.note.partition(";")[2].count(",")  # a figure for each of two layers


def test_no_ratio_where_no_task_gradient_reaches_a_router(entry: Write, budget: dict[str, Any]) -> None:
    constant = entry(router={"type": "top_k", "k": 1, "allow_constant": True}, balance=[{"type": "switch"}])
    with pytest.raises(ValueError, match="gradient_ratio: expected MoE layers whose weights have a task gradient"):
        checked(GradientRatioSpec, constant, {**budget, "steps": 2})


def test_only_a_training_that_diverged_counts_as_infinite(
    entry: Write, budget: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(error: Exception) -> Callable[..., Any]:
        def run(plain: Any, train: Any, **rest: Any) -> Any:
            if train.lr > 1e-2:
                raise error
            return SimpleNamespace(measured=SimpleNamespace(loss=1.0))

        return run

    keys = {"narrow": {"backbone.dim": 8}, "rates": [1e-3, 1e-1]}
    monkeypatch.setattr("training.claims.lab.run", broken(DivergedError("not finite")))
    found = checked(RateTransferSpec, entry(), budget, **keys)
    assert found.figure == 0 and found.note.count("0.1 inf") == 3
    monkeypatch.setattr("training.claims.lab.run", broken(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        checked(RateTransferSpec, entry(), budget, **keys)


def test_rates_are_tried_on_both_widths(entry: Write, budget: dict[str, Any]) -> None:
    narrow = {"backbone.dim": 8}
    found = checked(RateTransferSpec, entry(), budget, narrow=narrow, rates=[1e-3, 1e-2], at_most=9.0)
    assert found.holds and found.figure >= 0
    assert found.note.count("0.001 ") == 3 and "wide at one rate for all" in found.note
    with pytest.raises(SpecError, match=r"narrow: leaves the width"):
        parse(RateTransferSpec, {"narrow": {"backbone.layers.0.repeat": 1}})
    with pytest.raises(SpecError, match=r"rates: got 1"):
        parse(RateTransferSpec, {"narrow": narrow, "rates": [1e-3]})
