"""Spikes that are made on purpose: both runs see the same ones, and the guard leaves them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from training.claims import lab
from training.claims.budget import Budget
from training.claims.spikes import Disturb, SpikesLeftOutSpec
from zoo.claims import ClaimSpec
from zoo.hub.entries import Entry
from zoo.spec import parse

Language = Callable[..., dict[str, Any]]


def test_a_disturbed_step_sees_random_ids_in_the_same_shape(language: Language, budget: dict[str, Any]) -> None:
    seen: list[tuple[Any, float]] = []

    class Kept(Disturb):
        def allow(self, step: int, loss: float, norm: float, batch: Any) -> float:
            seen.append((batch[0][1], self.module.lr / self.rate))
            return super().allow(step, loss, norm, batch)

    lab.run(language(), parse(Budget, {**budget, "steps": 4}), callbacks=[Kept(every=2, factor=5.0, seed=0)])
    (plain, _), (odd, _) = seen[1:3]
    assert [factor for _, factor in seen] == [1.0, 1.0, 5.0, 1.0]
    assert {key: value.shape for key, value in plain.items()} == {key: value.shape for key, value in odd.items()}
    assert torch.equal(odd["ids"][:, 1:], odd["target"][:, :-1]) and int(odd["target"].max()) > 200


def test_one_of_two_runs_leaves_the_spikes_out(entry: Callable[..., Entry], budget: dict[str, Any]) -> None:
    train = {**budget, "steps": 16, "warmup": 0, "lr": 0.01}
    plain = {"every": 5, "factor": 30.0, "guard": {"start": 4, "ratio": 1.0, "deviations": 0.0}, "train": train}
    check = parse(SpikesLeftOutSpec, plain)
    assert isinstance(check, ClaimSpec)
    found = check.check(entry(), progress=False)
    assert found.holds == (found.figure > 0) and found.figure != 0
    assert "steps left out (at [5" in found.note and "30 times the rate every 5 steps" in found.note


@pytest.mark.parametrize("keys", [{"every": 0}, {"factor": 0.5}, {"guard": {"start": 0}}])
def test_impossible_settings_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys["guard"])) if "guard" in keys else next(iter(keys))):
        parse(SpikesLeftOutSpec, keys)
