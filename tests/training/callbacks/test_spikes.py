"""Spike handling: a step left out changes nothing, its samples come back once, a second spike lowers the rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import pytest
import torch

from training.callbacks.spikes import SpikeGuard

WHOLE = [("text", range(4))]
Judged = tuple[int, float]


def corrupted(step: Sequence[Any]) -> list[Any]:
    """The same rows with random targets."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for name, batch in step:
        wrong = torch.randint(0, 200, batch["target"].shape, generator=generator)
        found.append((name, {**batch, "target": torch.where(batch["target"] >= 0, wrong, -100)}))
    return found


class Rates(L.Callback):
    """The learning rate of the last step applied, after each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *more: Any) -> None:
        self.rates.append(pl_module.rate)


def snapshot(module: Any) -> dict[str, torch.Tensor]:
    states = module.optimizers().optimizer.state.values()
    state = {f"{i}.{k}": v.clone() for i, s in enumerate(states) for k, v in s.items()}
    return {**{k: v.clone() for k, v in module.model.state_dict().items()}, **state}


class Keep(L.Callback):
    """All weights, biases and optimiser state after each step."""

    def __init__(self) -> None:
        self.held: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *more: Any) -> None:
        self.held.append(snapshot(pl_module))


def learnt(tiny: Any, steps: int = 30) -> tuple[Any, list[Any]]:
    """A module whose loss has fallen, so that random targets stand out, and the step it learnt."""
    module = tiny.module(tiny.spec([{"type": "bias", "weight": 0.01}], bias=True), lr=1e-2)
    step = tiny.steps(module, WHOLE)
    tiny.train(module, [step] * steps)
    return module, step


def test_a_spike_changes_nothing_and_its_samples_come_back_exactly_once(tiny: Any) -> None:
    module, good = learnt(tiny)
    guard, keep, bad = SpikeGuard(start=3, within=3), Keep(), corrupted(good)
    seen: list[list[Any]] = []
    prepared = module.prepared

    def note(step: Sequence[Any], *place: Any) -> Any:
        seen.append(list(step))
        return prepared(step, *place)

    module.prepared = note
    tiny.train(module, [good] * 6 + [bad] + [good] * 6, [guard, keep])
    at = guard.skipped[0] - 30
    assert guard.skipped[0] == 36 and module.skipped == 1
    before, after = keep.held[at - 1], keep.held[at]
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert any(not torch.equal(after[k], keep.held[at + 1][k]) for k in after)
    longer = [i for i, step in enumerate(seen) if len(step) == 2]
    assert len(longer) == 1 and at < longer[0] <= at + 3
    again = seen[longer[0]][1][1]
    assert all(torch.equal(again[key], bad[0][1][key]) for key in again) and not guard.pending


def test_a_second_spike_is_applied_at_a_lower_rate(tiny: Any) -> None:
    module, good = learnt(tiny)
    guard, rates, bad = SpikeGuard(start=3, within=1, norm_ratio=2.0), Rates(), corrupted(good)
    tiny.train(module, [good] * 6 + [bad] + [good] * 3, [guard, rates])
    assert guard.skipped == [36] and guard.lowered == [37]
    assert rates.rates[5] == rates.rates[8] == 2 * rates.rates[7]


def test_the_schedule_does_not_see_a_step_that_was_left_out(tiny: Any) -> None:
    module = tiny.module(schedule="cosine", steps=10)
    good, rates = tiny.steps(module, WHOLE), Rates()

    class Refuse(L.Callback):
        def amend(self, step: int, batch: Sequence[Any]) -> Sequence[Any]:
            return batch

        def allow(self, step: int, loss: float, norm: float, batch: Sequence[Any]) -> float:
            return float(step != 2)

    tiny.train(module, [good] * 5, [Refuse(), rates])
    expected = [module.lr * module.schedule.factor(i, 10) for i in (0, 1, 1, 2, 3)]
    assert rates.rates == pytest.approx(expected)


def feed(guard: SpikeGuard, losses: Sequence[float]) -> list[Judged]:
    found = []
    for step, loss in enumerate(losses):
        guard.amend(step, [])
        found.append((step, guard.allow(step, loss, 1.0, [])))
    return found


def test_a_level_that_rises_for_good_is_accepted() -> None:
    guard = SpikeGuard(start=5, within=4)
    found = feed(guard, [1.0] * 20 + [2.0] * 60)
    assert [factor for _, factor in found[:20]] == [1.0] * 20 and found[20][1] == 0.0
    assert [factor for _, factor in found[-10:]] == [1.0] * 10


def test_small_steps_up_and_early_steps_are_no_spikes() -> None:
    assert all(factor == 1 for _, factor in feed(SpikeGuard(start=5), [1.0] * 10 + [1.09] * 10))
    assert all(factor == 1 for _, factor in feed(SpikeGuard(start=50), [1.0] * 10 + [9.0] * 10))


def test_a_gradient_norm_alone_makes_a_spike() -> None:
    guard = SpikeGuard(start=2)
    for step in range(5):
        guard.allow(step, 1.0, 1.0, [])
    assert guard.allow(5, 1.0, 4.9, []) == 1.0 and guard.allow(6, 1.0, 9.0, []) == 0.0


def test_its_state_survives_a_checkpoint() -> None:
    first = SpikeGuard(start=5, within=4)
    feed(first, [1.0, 1.1, 0.9, 1.0, 1.0, 1.1, 5.0])
    first.pending = [(9, [("text", {"ids": torch.arange(3)})])]
    second = SpikeGuard(start=5, within=4)
    second.load_state_dict(first.state_dict())
    assert second.loss == first.loss and second.norm == first.norm and second.skipped == [6]
    assert second.pending[0][0] == 9 and torch.equal(second.pending[0][1][0][1]["ids"], torch.arange(3))
    assert len(second.amend(9, [("text", {})])) == 2 and len(second.amend(9, [("text", {})])) == 1


def test_samples_of_another_number_of_ranks_are_given_up() -> None:
    state = SpikeGuard().state_dict()
    state["pending"] = [[(3, [])], [(3, [])]]
    guard = SpikeGuard()
    with pytest.warns(UserWarning, match="number of ranks changed"):
        guard.load_state_dict(state)
    assert guard.pending == []


@pytest.mark.parametrize("keys", [{"decay": 1.0}, {"factor": 0.0}, {"start": 0}, {"within": 0}, {"norm_ratio": 0.5}])
def test_impossible_settings_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        SpikeGuard(**keys)
