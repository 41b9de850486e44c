"""The bigram is what it says and smoothed for its own good; the evaluation counts the same notes for both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modalities.music.bigram import Bigram
from modalities.music.data import TunesSpec
from modalities.music.evaluate import evaluate, measure, statistics
from modalities.music.spec import MusicSpec, NotesSpec


def test_the_bigram_knows_each_voice_on_its_own() -> None:
    line = np.tile([0, 1], 300)
    pieces = [np.stack([line, np.zeros(600, dtype=int)], axis=1)] * 10
    assert Bigram(pieces, 2).bits(pieces) < 0.01
    noise = [np.random.default_rng(i).integers(0, 4, (2000, 2)) for i in range(10)]
    assert Bigram(noise[:9], 4).bits(noise[9:]) == pytest.approx(2.0, abs=0.02)


def test_the_bigram_sums_to_one_over_what_may_follow() -> None:
    pieces = [np.array([[0], [1], [1]]), np.array([[1], [0], [0]])] * 6
    bigram = Bigram(pieces, 3)
    chance = [2 ** -(3 * bigram.bits([np.array([[1], [1], [s]])])) for s in range(3)]
    both = 2 ** -(2 * bigram.bits([np.array([[1], [1]])]))
    assert sum(chance) == pytest.approx(both)


def test_its_smoothing_is_the_best_on_held_out_training_pieces() -> None:
    pieces = [np.random.default_rng(i).integers(0, 30, (12, 1)) for i in range(20)]
    few = Bigram(pieces, 30)
    assert few.weight == 100.0  # nothing follows from the note before: the unigram is trusted
    assert Bigram([np.arange(50)[:, None] % 5], 5).weight == 0.3


def test_unseen_symbols_stay_finite() -> None:
    assert np.isfinite(Bigram([np.zeros((20, 4), dtype=int)] * 3, 128).bits([np.full((5, 4), 99)]))


def test_a_trained_model_beats_the_bigram_and_writes_a_piece(
    trunk: Any, train: Callable[..., list[float]], generator: torch.Generator, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = MusicSpec(representation=NotesSpec(length=16, transpose=0)).build(16)
    tunes = TunesSpec().build("train")
    train(module, trunk, [module.example(raw) for raw in tunes], 100)
    (score,) = evaluate(module, trunk.new_step, tunes, tunes[:2], generator=generator, out=tmp_path)
    assert score.name == "bits per note" and not score.higher and score.won
    assert score.note.startswith(f"{sum(t['notes'].size for t in tunes[:2])} notes of 2 pieces")
    assert {p.name for p in tmp_path.iterdir()} == {"music.wav", "music.mid"}
    import soundfile

    audio, rate = soundfile.read(tmp_path / "music.wav")
    seconds, loudness, peak = measure(audio, rate)
    assert seconds == pytest.approx(16.8, abs=0.2) and loudness > 0.02 and 0.5 < peak <= 1


def test_the_limit_bounds_both_sides_alike(trunk: Any, generator: torch.Generator) -> None:
    module = MusicSpec().build(16)
    tunes = TunesSpec().build("test")
    (few,) = evaluate(module, trunk.new_step, tunes, tunes, generator=generator, out=None, limit=1)
    assert few.note.startswith(f"{tunes[0]['notes'].size} notes of 1 pieces")
    assert few.value == pytest.approx(7.0, abs=1e-3) and not few.won


def test_nothing_to_test_is_an_error(trunk: Any, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="got 1 training and 0 test pieces"):
        evaluate(MusicSpec().build(16), trunk.new_step, TunesSpec().build("train")[:1], [], generator=generator)


def test_silence_and_nan_are_refused() -> None:
    with pytest.raises(RuntimeError, match="silent"):
        measure(np.zeros(100), 100)
    with pytest.raises(RuntimeError, match="NaN"):
        measure(np.array([0.0, np.nan]), 100)
    assert measure(np.array([0.5, -0.5]), 1) == (2.0, 0.5, 0.5)


def test_statistics_of_notes() -> None:
    known = [np.array([[60, 50, 0, 40], [62, 50, 45, 40]])]
    found = statistics(np.array([[61, 50, 45, 41], [61, 49, 0, 40]]), known)
    assert found == {"sounding": 7 / 8, "in range": pytest.approx(5 / 7), "held": 1 / 4}
