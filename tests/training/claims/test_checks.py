"""The general checks hold where they should and fail where they should, on figures that are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from training.claims import counting, lab
from training.claims.band import BandSpec, LoadBalancedSpec
from training.claims.base import TrainedClaim
from training.claims.figures import MEANING, OF, figure
from training.claims.lab import unified
from training.claims.losses import LossBetterSpec, LossNotWorseSpec, difference
from training.claims.measuring import Layer, Measured
from training.claims.speed import LayersFasterSpec
from training.claims.sweep import AblationSpec, MilderSpec, MonotoneSpec, SteadierSpec
from training.claims.tokens import GroupsEqualSpec, HardTokensSpec
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.spec import SpecError, parse

Write = Callable[..., Entry]
K = "backbone.layers.0.block.ffn.router.k"


def checked(kind: type[TrainedClaim], entry: Entry, budget: dict[str, Any], **keys: Any) -> Finding:
    return parse(kind, {"train": budget, **keys}).check(entry, progress=False)


def test_a_figure_in_a_band(entry: Write, budget: dict[str, Any]) -> None:
    found = checked(BandSpec, entry(), budget, figure="mean_k", low=2.0, high=2.0)
    assert found.holds and found.figure == 2 and found.expected == "mean_k 2"
    assert found.note == f"{MEANING['mean_k']}; 3 steps of 2 windows of docstrings, 4 held-out windows"
    missed = checked(BandSpec, entry(), budget, figure="null_share", low=0.1)
    assert not missed.holds and missed.figure == 0 and missed.expected == "null_share at least 0.1"
    changed = checked(BandSpec, entry(), budget, figure="mean_k", low=1.0, high=2.5, change={K: 3})
    assert not changed.holds and changed.figure == 3 and changed.expected == "mean_k 1..2.5"


def test_an_even_load(entry: Write, budget: dict[str, Any]) -> None:
    found = checked(LoadBalancedSpec, entry(), budget, at_most=4.0, dead=8)
    assert found.holds and 1 <= found.figure <= 4
    assert not checked(LoadBalancedSpec, entry(), budget, at_most=1.0, dead=8).holds


def test_a_sweep(entry: Write, budget: dict[str, Any]) -> None:
    keys = {"figure": "mean_k", "key": K, "values": [1, 2, 4]}
    one = entry()
    found = checked(MonotoneSpec, one, budget, **{**keys, "values": [2, 3, 4]}, by=1.0)
    assert found.holds and found.figure == 1 and "k 2: 2; k 3: 3; k 4: 4" in found.note
    assert not checked(MonotoneSpec, one, budget, **{**keys, "values": [2, 3, 4]}, trend="falls").holds
    assert not checked(MonotoneSpec, one, budget, **{**keys, "values": [2, 2]}).holds, "no change is no trend"
    with pytest.raises(SpecError, match="unknown key 'kk'"):
        checked(MonotoneSpec, one, budget, figure="mean_k", key=f"{K}k", values=[1, 2])


def test_something_exchanged(entry: Write, budget: dict[str, Any]) -> None:
    found = checked(AblationSpec, entry(), budget, figure="mean_k", overrides={K: 3}, expect="less", by=1.0)
    assert found.holds and found.figure == 1
    assert not checked(AblationSpec, entry(), budget, figure="mean_k", overrides={K: 3}, expect="more").holds
    same = checked(AblationSpec, entry(), budget, figure="loss", overrides={K: 2}, expect="less")
    assert not same.holds and same.figure == 0


def test_an_exchange_does_less_than_elsewhere(entry: Write, budget: dict[str, Any]) -> None:
    keys = {"figure": "mean_k", "overrides": {K: 3}, "reading": True}
    found = checked(MilderSpec, entry(), budget, **keys, beside={K: 1, K.replace(".k", ".normalize"): "all"})
    assert found.holds and found.figure == 1 and "+1, with k 1, normalize all: +2" in found.note
    assert not checked(MilderSpec, entry(), budget, **keys, beside={K: 2}).holds


def test_a_figure_over_seeds(entry: Write, budget: dict[str, Any]) -> None:
    steady = checked(SteadierSpec, entry(), budget, figure="mean_k", overrides={K: 3}, seeds=2)
    assert not steady.holds and steady.figure == 0 and "deviation 0 (2, 2), with it 0 (3, 3)" in steady.note
    still = {"backbone.layers.0.block.ffn.router.gate": {"type": "linear", "init_std": 5.0}}
    found = checked(SteadierSpec, entry(), budget, figure="logit_spread", overrides=still, seeds=3)
    assert (
        found.holds and found.expected == "logit_spread varies less over 3 seeds than with the exchange, by any amount"
    )


def test_an_exchange_for_reading_keeps_the_trained_weights(entry: Write, budget: dict[str, Any]) -> None:
    one = entry()
    keys = {"figure": "mean_k", "overrides": {K: 3}, "expect": "less", "reading": True}
    assert checked(AblationSpec, one, budget, **keys).figure == 1
    trained = lab.kept_run(one.spec, parse(AblationSpec, {"train": budget, **keys}).train, progress=False)
    same = lab.reread(trained, one.spec, parse(AblationSpec, {"train": budget, **keys}).train)
    assert np.array_equal(same.measured.token, trained.measured.token)
    loss = checked(MonotoneSpec, one, budget, figure="loss", key=K, values=[2, 3], reading=True)
    again = checked(MonotoneSpec, one, budget, figure="loss", key=K, values=[2, 3])
    assert loss.figure != again.figure
    wider = {"backbone.layers.0.block.ffn.experts.hidden": 16}
    with pytest.raises(RuntimeError, match="size mismatch"):
        checked(AblationSpec, one, budget, **{**keys, "overrides": wider})


def test_a_baseline_of_equal_operations(entry: Write, budget: dict[str, Any]) -> None:
    keys = {"overrides": {K: 4}, "solve": ["experts.hidden"]}
    own, other = parse(LossNotWorseSpec, {"train": budget, **keys}).pair(entry())
    assert counting.flops(unified(own)) == pytest.approx(counting.flops(unified(other)), rel=0.02)
    assert own["backbone"]["layers"][0]["block"]["ffn"]["experts"]["hidden"] > 8


def test_layers_beside_others(entry: Write, budget: dict[str, Any]) -> None:
    wide = {"backbone.layers.0.block.ffn.experts.hidden": 2048}
    found = checked(LayersFasterSpec, entry(), budget, overrides=wide, rounds=3, rows=4, at_least=1.5)
    assert found.holds and found.figure > 1.5 and "the routed rows promise 1.000" in found.note
    fewer = checked(LayersFasterSpec, entry(), budget, overrides={K: 4}, rounds=1, rows=1, of_promise=100.0)
    assert not fewer.holds and fewer.expected == "at least 200.000 times as fast"


def test_a_loss_beside_a_baseline(entry: Write, budget: dict[str, Any], language: Callable[..., Any]) -> None:
    same = checked(LossNotWorseSpec, entry(), budget, baseline=language())
    assert same.holds and same.figure == 0
    assert not checked(LossBetterSpec, entry(), budget, baseline=language()).holds
    untrained = checked(LossNotWorseSpec, entry(), budget, baseline=language(), seeds=2, deviations=0.0, margin=-0.5)
    assert not untrained.holds and "2 seed(s), deviation over seeds 0.0000" in untrained.note
    shorter = language()
    shorter["modalities"]["text"]["length"] = 16
    with pytest.raises(ValueError, match="baseline: reads text in other windows"):
        checked(LossNotWorseSpec, entry(), budget, baseline=shorter)


def test_a_baseline_beside_the_entry(entry: Write, budget: dict[str, Any]) -> None:
    own = entry()
    assert checked(LossNotWorseSpec, own, budget, baseline=own.path.name).figure == 0


def test_differences_of_losses() -> None:
    counts = np.full(4, 10)
    own = [np.array([10.0, 20, 30, 40]), np.array([12.0, 22, 32, 42])]
    other = [np.array([11.0, 21, 31, 41]), np.array([10.0, 20, 30, 40])]
    found = difference(own, other, counts)
    assert found.mean == pytest.approx(0.05)  # -0.1 and +0.2 nats per byte
    assert found.deviation == pytest.approx(0.3 / 2**0.5) == found.band and found.error == pytest.approx(0, abs=1e-12)
    alone = difference(own[:1], [np.array([10.0, 20, 30, 44])], counts)
    assert np.isnan(alone.deviation) and alone.error == pytest.approx(0.1) == alone.band


def fake(used: np.ndarray, token: np.ndarray, chosen: np.ndarray | None = None) -> Any:
    """An outcome of which only single tokens are known."""
    layer = Layer((5, 5, 5, 5), 4, 10, 20, 1.0)
    picks = np.zeros((0, 0), np.int64) if chosen is None else chosen
    ones = np.ones(1, np.int64)
    return type("Fake", (), {"measured": Measured(np.ones(1), ones, (layer,), token, used, picks, used)})


def test_hard_tokens(entry: Write, budget: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    token = np.linspace(0, 1, 20)
    outcomes = iter([fake(np.arange(20)[None], token), fake(np.arange(20)[None, ::-1], token)])
    monkeypatch.setattr(lab, "kept_run", lambda *_, **__: next(outcomes))
    rising = checked(HardTokensSpec, entry(), budget)
    assert rising.holds and rising.figure == pytest.approx(1)
    assert "easiest quarter 2.000, hardest 17.000" in rising.note
    falling = checked(HardTokensSpec, entry(), budget)
    assert not falling.holds and falling.figure == pytest.approx(-1)


def test_hard_tokens_of_a_fixed_number_of_experts(entry: Write, budget: dict[str, Any]) -> None:
    found = checked(HardTokensSpec, entry(), budget)
    assert not found.holds and found.figure == 0 and "every token uses 4 routed experts" in found.note


def test_equal_groups(entry: Write, budget: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    even, skewed = np.array([[[0, 2], [3, 1]]]), np.array([[[0, 2], [0, 1]]])
    token = np.ones(2)
    for chosen, worst in ((even, 0), (skewed, 2)):
        monkeypatch.setattr(lab, "kept_run", lambda *_, c=chosen, **__: fake(np.ones((1, 2)), token, c))
        found = checked(GroupsEqualSpec, entry(), budget, groups=2)
        assert found.figure == worst and found.holds == (worst == 0)
    with pytest.raises(ValueError, match="groups: got 3, expected a divisor of the 4"):
        checked(GroupsEqualSpec, entry(), budget, groups=3)


def test_every_figure_is_defined(entry: Write, budget: dict[str, Any]) -> None:
    one = entry()
    outcome = lab.kept_run(one.spec, parse(BandSpec, {"figure": "loss", "low": 0.0, "train": budget}).train)
    assert all(np.isfinite(figure(outcome, name)) for name in OF)  # type: ignore[arg-type]


def test_a_dense_model_has_no_routing(entry: Write, budget: dict[str, Any]) -> None:
    dense = {"backbone.layers.0.block.ffn": {"type": "dense", "hidden": 8}}
    with pytest.raises(ValueError, match=r"figure: mean_k .* is not defined for a model without MoE layers"):
        checked(BandSpec, entry(), budget, figure="mean_k", low=0.0, change=dense)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (BandSpec, {"figure": "mean_k"}, "low: got neither low nor high"),
        (BandSpec, {"figure": "mean_k", "low": 2.0, "high": 1.0}, "low: got 2.0, expected at most high = 1.0"),
        (BandSpec, {"figure": "meank", "low": 2.0}, "did you mean 'mean_k'"),
        (LoadBalancedSpec, {"at_most": 0.5}, "at_most: got 0.5"),
        (MonotoneSpec, {"figure": "loss", "key": "a", "values": [1]}, "values: got 1, expected at least two"),
        (AblationSpec, {"figure": "loss", "overrides": {}, "expect": "less"}, "overrides: got none"),
        (LossNotWorseSpec, {"baseline": "x", "seeds": 0}, "seeds: got 0"),
        (LossNotWorseSpec, {}, "baseline: got neither a baseline nor overrides"),
        (LayersFasterSpec, {}, "baseline: got neither a baseline nor overrides"),
        (MonotoneSpec, {"figure": "loss", "key": "a", "values": [1, 2], "by": -1.0}, "by: got -1.0"),
        (SteadierSpec, {"figure": "loss", "overrides": {"a": 1}, "seeds": 1}, "seeds: got 1, expected 2"),
        (GroupsEqualSpec, {"groups": 1}, "groups: got 1, expected 2 or more"),
    ],
)
def test_a_check_that_cannot_be_is_refused(kind: type[TrainedClaim], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(kind, keys)
