"""What people call on a model: right shapes, seeds, modes restored, clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.models.unified import Unified

NOISE = np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.1


@pytest.fixture(scope="module")
def full() -> Unified:
    """All six modalities, small."""
    model = zoo.create("unimoe-tiny", **{"backbone.dim": 32, "backbone.cond": 32, "backbone.layers.0.repeat": 1})
    speech: Any = model.modalities["speech"]
    speech.fit([{"audio": NOISE, "rate": 8000, "text": "one", "speaker": "ann"} for _ in range(40)])
    return model


CALLS: dict[str, Callable[[Unified, int], Any]] = {
    "generate": lambda m, seed: m.generate("ab", max_new_tokens=6, seed=seed),
    "generate ids": lambda m, seed: m.generate(torch.tensor([[256, 97]]), max_new_tokens=6, seed=seed).tolist(),
    "sample": lambda m, seed: m.sample([1, 2], steps=2, seed=seed).tolist(),
    "compose": lambda m, seed: m.compose(seconds=1.0, seed=seed).piece.tolist(),
    "speak": lambda m, seed: m.speak("one", seed=seed).codes.tolist(),
    "transcribe": lambda m, seed: m.transcribe(NOISE, 8000),
    "classify": lambda m, seed: m.classify(np.zeros((8, 8), np.uint8)).probability.tolist(),
    "forecast": lambda m, seed: m.forecast(np.sin(np.arange(400.0)), 30).tolist(),
}


@pytest.mark.parametrize("verb", CALLS)
def test_equal_seeds_give_equal_answers_and_nothing_is_disturbed(full: Unified, verb: str) -> None:
    full.train()
    full.modalities["speech"].codec.eval()
    modes = [m.training for m in full.modules()]
    state = torch.get_rng_state()
    first = CALLS[verb](full, 3)
    assert [m.training for m in full.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert CALLS[verb](full, 3) == first
    torch.set_rng_state(state)


@pytest.mark.parametrize("verb", ["generate", "generate ids", "sample", "compose"])
def test_other_seeds_give_other_answers(full: Unified, verb: str) -> None:
    assert CALLS[verb](full, 3) != CALLS[verb](full, 4)


def test_generate_in_all_its_forms(full: Unified) -> None:
    one = full.generate("ab", max_new_tokens=8, temperature=0.0)
    assert isinstance(one, str)
    both = full.generate(["ab", "a longer prompt"], max_new_tokens=8, temperature=0.0)
    assert isinstance(both, list) and both[0] == one
    streamed = list(full.generate("ab", max_new_tokens=8, temperature=0.0, stream=True))
    assert "".join(streamed) == one
    ids = full.generate(torch.tensor([[256, 97, 98]]), max_new_tokens=8, temperature=0.0)
    text: Any = full.modalities["text"]
    assert isinstance(ids, torch.Tensor) and text.texts(ids[:, 3:])[0] == one
    rows = list(full.generate(["ab", "a longer prompt"], max_new_tokens=8, temperature=0.0, stream=True))
    assert ["".join(row) for row in zip(*rows, strict=True)] == both
    steps = list(full.generate(torch.tensor([[256, 97, 98]]), max_new_tokens=8, temperature=0.0, stream=True))
    assert torch.equal(torch.stack(steps, dim=1), ids[:, 3:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
    ],
)
@pytest.mark.parametrize("prompt", ["ab", torch.tensor([[256, 97]])])
def test_impossible_settings_are_named(full: Unified, prompt: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        full.generate(prompt, **settings)


def test_images_in_and_out(full: Unified) -> None:
    images = full.sample([0, 5, 9], steps=2)
    assert images.shape == (3, 8, 8, 1) and images.dtype == torch.uint8
    found = full.classify(images.numpy())
    assert found.label.shape == (3,) and found.probability.shape == (3, 10)
    assert found.name == tuple(map(str, found.label.tolist()))
    torch.testing.assert_close(found.probability.sum(-1), torch.ones(3))
    mixed = full.classify([np.zeros((20, 30, 3), np.uint8), np.zeros((8, 8), np.uint8)])
    assert mixed.label.shape == (2,)
    with pytest.raises(ValueError, match="labels: missing; this model draws images for labels"):
        full.sample(prompts="a cat")


def test_sound_in_and_out(full: Unified) -> None:
    spoken = full.speak("one", speaker="ann", seed=1)
    assert spoken.rate == 8000 and spoken.audio.ndim == 1
    both = full.transcribe([NOISE, NOISE], 8000)
    assert isinstance(both, list) and both[0] == both[1] == full.transcribe(NOISE, 8000)
    piece = full.compose(seconds=2.0)
    assert piece.audio.shape[0] / piece.rate == pytest.approx(2.0, abs=1.0)
    with pytest.raises(ValueError, match=r"seconds: got 0.0, expected at least"):
        full.compose(seconds=0.0)
    with pytest.raises(ValueError, match=r"audio: got a rate of 0, expected samples per second"):
        full.transcribe(NOISE, 0)
    with pytest.raises(ValueError, match=r"images: got none"):
        full.classify([])
    with pytest.raises(ValueError, match=r"speaker: got 'bob'"):
        full.speak("one", speaker="bob")


def test_forecasts(full: Unified) -> None:
    series = np.sin(np.arange(400.0))
    assert full.forecast(series, 7).shape == (7,)
    assert full.forecast(np.stack([series, series]), 200).shape == (2, 200)
    for bad, message in [
        (np.full(400, np.nan), "nan"),
        (series[:3], "expected at least 24"),
        (series, "horizon: got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            full.forecast(bad, 0 if message.startswith("horizon") else 5)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda m: m.classify(np.zeros((8, 8), np.uint8)), "vision"),
        (lambda m: m.sample([1]), "diffusion"),
        (lambda m: m.compose(), "music"),
        (lambda m: m.speak("one"), "speech"),
        (lambda m: m.transcribe(NOISE, 8000), "speech"),
    ],
)
def test_a_missing_modality_is_named_with_those_there_are(model: Unified, call: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=f"this model has no {kind} modality; it has text, time series"):
        call(model)


def test_modalities_are_found_by_type_not_by_name(model: Unified) -> None:
    assert model.find("time_series") == "series"
    assert model.forecast(np.arange(20.0), 3).shape == (3,)
