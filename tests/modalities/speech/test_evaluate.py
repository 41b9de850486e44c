"""The evaluation: scores that are right for a perfect and for an untrained model, and a readable WAV."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from modalities.base import Raw, Step, Tokens
from modalities.speech.data import SpokenDigitsSpec
from modalities.speech.evaluate import evaluate
from modalities.speech.module import Speech, Spoken
from modalities.speech.recogniser import classes, nearest_class_mean


def idle() -> Step:
    def step(tokens: Tokens) -> Tokens:
        raise AssertionError("an oracle needs no trunk")

    return step


def test_an_oracle_wins_both_rows(speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transcripts from the labels, and real recordings sent through the codec as what was spoken."""
    train, test = SpokenDigitsSpec().build("train")[::3], SpokenDigitsSpec().build("test")
    heard = {raw["source"]: raw["text"] for raw in test}
    by_word: dict[str, list[Raw]] = {}
    for raw in test:
        by_word.setdefault(raw["text"], []).append(raw)

    def transcribe(step: Step, audios: Sequence[Raw], longest: int) -> list[str]:
        return [heard[raw["source"]] for raw in audios]

    def speak(step: Step, texts: Sequence[str], generator: torch.Generator, **_: object) -> list[Spoken]:
        codes = [speech.codec.encode(speech.waveform(by_word[t][i % 12], 8000)) for i, t in enumerate(texts)]
        return [Spoken(speech.codec.decode(c), c, 8000) for c in codes]

    monkeypatch.setattr(speech, "transcribe", transcribe)
    monkeypatch.setattr(speech, "speak", speak)
    listening, speaking = evaluate(speech, idle, train, test, generator=torch.Generator(), out=tmp_path, limit=60)
    assert listening.value == 1.0 and 0.1 < listening.baseline < 1.0 and listening.won
    assert speaking.value > 0.6 and speaking.baseline == pytest.approx(0.1) and speaking.won
    assert speaking.bound is not None and 0.1 < speaking.bound < speaking.value
    audio, rate = soundfile.read(tmp_path / "spoken.wav")
    assert rate == 8000 and 10 * 0.15 < len(audio) / rate < 15 and 0.05 < abs(audio).max() <= 0.96


def test_an_untrained_model_does_not_win(
    speech: Speech, raws: list[Raw], stand_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "spec", dataclasses.replace(speech.spec, seconds=1.0))
    listening, speaking = evaluate(
        speech,
        stand_in().step,
        raws,
        raws[:20],
        generator=torch.Generator().manual_seed(0),
        limit=20,
    )
    assert listening.value == 0.0 and not listening.won
    assert speaking.bound is not None and speaking.bound < 0.3


def test_nearest_class_mean() -> None:
    train = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    assert nearest_class_mean(train, ["a", "a", "b"], torch.tensor([[1.0, 1.0], [8.0, 8.0]])) == ["a", "b"]


def test_sentences_are_refused() -> None:
    with pytest.raises(ValueError, match="got 150 distinct texts"):
        classes([str(i) for i in range(150)])
