"""The laboratory: what it counts is what was done, and a seed fixes it all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from training.claims import counting, lab
from training.claims.budget import Budget
from training.claims.lab import Outcome, unified
from training.claims.measuring import Layer, measure, merge
from zoo.spec import parse

Language = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def small(budget: dict[str, Any]) -> Budget:
    return parse(Budget, budget)


@pytest.fixture(scope="module")
def outcome(language: Language, small: Budget) -> Outcome:
    """A mixture with a null expert, after three steps."""
    return lab.run(language(null_experts={"zero": 1}), small, seed=1)


def test_a_seed_fixes_everything(language: Language, small: Budget, outcome: Outcome) -> None:
    again = lab.run(language(null_experts={"zero": 1}), small, seed=1)
    assert [p.loss for p in again.curve] == [p.loss for p in outcome.curve]
    assert np.array_equal(again.measured.token, outcome.measured.token)
    other = lab.run(language(null_experts={"zero": 1}), small, seed=2)
    assert [p.loss for p in other.curve] != [p.loss for p in outcome.curve]


def test_two_systems_read_the_same_text(language: Language, small: Budget) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    from modalities.text.module import Text

    for name, ffn in {"mixture": {}, "wider": {"routed": 6}}.items():
        encode, seen[name] = Text.encode, []

        def spy(self: Text, batch: Any, kept: list[torch.Tensor] = seen[name], real: Any = encode) -> Any:
            kept.append(batch["ids"].clone())
            return real(self, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Text, "encode", spy)
            lab.run(language(**ffn), small, seed=0)
    assert len(seen["mixture"]) > 3
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))


def test_the_measured_loss_is_that_of_the_model(outcome: Outcome, small: Budget) -> None:
    raws = small.source().raws("text", "test")
    text: Any = outcome.model.modality("text")
    from modalities.text.evaluate import bits, windows

    held = windows(text, raws, small.held_out)
    count = sum(len(w.ids) - w.scored for w in held)
    expected = bits(text, lambda: outcome.model.stepper("text"), held) * math.log(2) / count
    assert outcome.measured.loss == pytest.approx(expected, rel=1e-5)
    assert int(outcome.measured.counts.sum()) == count == len(outcome.measured.token)
    assert outcome.measured.token.sum() == pytest.approx(outcome.measured.losses.sum(), rel=1e-5)
    assert outcome.measured.token.mean() == pytest.approx(expected, rel=1e-5)


def test_layers_count_slots_and_tokens(outcome: Outcome) -> None:
    found = outcome.measured
    for layer, used in zip(found.layers, found.used, strict=True):
        assert sum(layer.load) == 2 * layer.tokens == layer.kept and layer.routed == 4 and len(layer.load) == 5
        assert 0 < layer.routed_k < 2 and 1 <= layer.ratio <= 4
        assert used.shape == found.token.shape and used.max() <= 2
    assert found.chosen.shape == (2, len(found.token), 2)
    assert ((found.chosen < 4).sum(2) == found.used).all()


def test_a_part_of_the_text_weighs_by_its_tokens() -> None:
    parts = [Layer((4, 0, 2), 2, 3, 6, 0.5), Layer((1, 1, 0), 2, 1, 2, 0.1)]
    assert merge(parts) == Layer((5, 1, 2), 2, 4, 8, pytest.approx(0.4))
    assert merge(parts).routed_k == 1.5 and merge(parts).ratio == pytest.approx(5 / 3)
    assert Layer((1000, 1), 2, 1, 1, 0.0).dead == 1 and Layer((10, 1), 2, 1, 1, 0.0).dead == 0


def test_operations_follow_the_experts_that_are_used(language: Language) -> None:
    spec = unified(language())
    stated = counting.flops(spec)
    assert stated == spec.cost(16.5).flops, "half of a row of 32, the token itself included"
    assert counting.flops(spec, 2.0) == stated == counting.flops(spec, [2.0, 2.0])
    expert = 2 * 3 * 16 * 8
    assert stated - counting.flops(spec, [2.0, 1.5]) == pytest.approx(expert / 2)
    with_null = unified(language(null_experts={"zero": 4}))
    found = next(counting.choices(with_null.backbone, 16, 16.5))
    assert found == counting.Choice(1.0, expert), "half of two slots at even load"
    assert math.isnan(counting.flops(spec, [2.0]))


def test_attention_experts_attend_too(language: Language) -> None:
    attention = {"routed": 4, "heads": 1, "head_dim": 8, "router": {"type": "top_k", "k": 2}}
    plain = language()
    ffn = plain["backbone"]["layers"][0]["block"]["ffn"]
    plain["backbone"]["layers"][0]["block"] = {"type": "attention_experts", "attention": attention, "ffn": ffn}
    spec = unified(plain)
    assert len(spec.build().moe_layers()) == 4
    heads, network = list(counting.choices(spec.backbone, 16, 16.5))[:2]
    assert heads == counting.Choice(2.0, 2 * 2 * 16 * 8 + 4 * 8 * 16.5) and network.each == 2 * 3 * 16 * 8
    assert counting.flops(spec, 2.0) == pytest.approx(spec.cost(16.5).flops)


def test_the_curve_adds_up_what_training_did(outcome: Outcome, small: Budget) -> None:
    tokens = small.rows * 32
    assert [p.step for p in outcome.curve] == [1, 2, 3]
    steps = np.diff([0.0, *(p.flops for p in outcome.curve)]) / (3 * tokens)
    least, most = counting.flops(outcome.model.spec, 0.0), counting.flops(outcome.model.spec, 2.0)
    assert ((steps > least) & (steps <= most)).all()
    assert outcome.speed > 0 and outcome.tokens == 2 * tokens


def test_a_dense_model_has_no_layers(language: Language, small: Budget) -> None:
    plain = language()
    plain["backbone"]["layers"][0]["block"]["ffn"] = {"type": "dense", "hidden": 8}
    found = lab.run(plain, small)
    assert found.measured.layers == () and found.measured.used.size == 0
    assert found.active_flops == counting.flops(found.model.spec)


def test_threads_and_the_global_generator_are_left_alone(language: Language, small: Budget) -> None:
    threads = torch.get_num_threads()
    lab.run(language(), small)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"lr": 0.0}, "lr: got 0.0"),
        ({"schedule": "wsd", "decay": 4}, "warmup: .* are more than the run's"),
        ({"data": [{"type": "text_files", "path": "gone"}]}, "gone"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(
    change: dict[str, Any], message: str, language: Language, budget: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        lab.run(language(), parse(Budget, {**budget, **change}))


def test_a_model_without_text_is_refused(language: Language, small: Budget) -> None:
    plain = language()
    plain["modalities"] = {"series": {"type": "time_series", "patch": 4, "context": 16, "heads": [4]}}
    with pytest.raises(ValueError, match="modalities: got series, expected one of type text"):
        lab.run(plain, small)


def test_reading_less_text_reads_it_evenly(outcome: Outcome, small: Budget) -> None:
    raws = small.source().raws("text", "test")
    assert len(measure(outcome.model, "text", raws, 2).losses) == 2
