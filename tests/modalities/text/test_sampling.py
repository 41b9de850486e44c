from __future__ import annotations

import typing
from dataclasses import fields
from typing import Any

import pytest
import torch

from modalities.text.sampling import Sampling, SamplingKeys, draw, kept, penalised


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(logits: list[float], banned: tuple[int, ...] = (), **settings: Any) -> set[int]:
    rows = torch.tensor(logits).expand(500, -1)
    return set(draw(rows, Sampling(**settings), seeded(), banned).tolist())


def test_temperature_zero_takes_the_most_likely_and_needs_no_generator() -> None:
    assert draw(torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]), Sampling(temperature=0)).tolist() == [1, 0]


def test_cuts_of_the_tail() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert drawn(logits) == {0, 1, 2, 3}
    assert drawn(logits, top_k=2) == {0, 1}
    assert drawn(logits, top_k=9) == {0, 1, 2, 3}
    assert drawn(logits, top_p=0.5) == {0}
    assert drawn(logits, top_p=0.79) == {0, 1}
    assert drawn(logits, top_p=0.81) == {0, 1, 2}
    assert drawn(logits, top_p=1e-9) == {0}
    assert drawn(logits, min_p=0.29) == {0, 1, 2}
    assert drawn(logits, min_p=1.0) == {0}
    assert drawn(logits, top_k=3, top_p=0.81) == {0, 1}  # of what top_k left


def test_a_banned_id_is_never_drawn() -> None:
    assert drawn([9.0, 0.0, 0.0], banned=(0,)) == {1, 2}


def test_shares_follow_the_probabilities() -> None:
    rows = torch.tensor([0.7, 0.1, 0.2]).log().expand(20_000, -1)
    for settings in ({}, {"top_p": 0.999}, {"top_k": 3}):
        counts = draw(rows, Sampling(**settings), seeded()).bincount(minlength=3) / 20_000  # type: ignore[arg-type]
        torch.testing.assert_close(counts, torch.tensor([0.7, 0.1, 0.2]), atol=0.01, rtol=0)


def test_the_seed_fixes_the_draw() -> None:
    logits = torch.randn(50, 9, generator=seeded(1))
    assert torch.equal(draw(logits, Sampling(), seeded(2)), draw(logits, Sampling(), seeded(2)))
    assert not torch.equal(draw(logits, Sampling(), seeded(2)), draw(logits, Sampling(), seeded(3)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.4},
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.4},
        {"repetition_penalty": 0.6, "top_p": 0.9},
    ],
)
def test_probabilities_are_those_of_transformers(settings: dict[str, Any]) -> None:
    from transformers import generation

    logits = torch.randn(5, 40, generator=seeded(1)) * 3
    ids = torch.randint(0, 40, (5, 12), generator=seeded(2))
    theirs = logits.clone()
    for key, make in {
        "repetition_penalty": generation.RepetitionPenaltyLogitsProcessor,
        "temperature": generation.TemperatureLogitsWarper,
        "top_k": generation.TopKLogitsWarper,
        "top_p": generation.TopPLogitsWarper,
        "min_p": generation.MinPLogitsWarper,
    }.items():
        if key in settings:
            theirs = make(settings[key])(ids, theirs)
    sampling = Sampling(**settings)
    seen = torch.zeros(5, 40, dtype=torch.bool).scatter_(1, ids, True)
    ours = penalised(logits, seen, sampling.repetition_penalty) / sampling.temperature
    share, order = kept(ours, sampling)
    share = share / share.sum(-1, keepdim=True)
    found = share if order is None else torch.zeros_like(logits).scatter(1, order, share)
    torch.testing.assert_close(found, theirs.softmax(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
        ({"min_p": -0.1}, "min_p: got -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: got 0.0"),
        ({"stop": ("a", "")}, "stop: got an empty text"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


def test_a_draw_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="generator: none given"):
        draw(torch.zeros(1, 3), Sampling())


def test_keys_one_by_one() -> None:
    assert typing.get_type_hints(SamplingKeys).keys() == {f.name for f in fields(Sampling)}
    found = Sampling(top_k=3).but({"stop": "a", "eos": 7})
    assert found == Sampling(top_k=3, stop=("a",), eos=(7,))
    with pytest.raises(TypeError, match=r"no setting 'top_kk' of generation \(did you mean 'top_k'\?\)"):
        found.but({"top_kk": 3})  # type: ignore[typeddict-unknown-key]
