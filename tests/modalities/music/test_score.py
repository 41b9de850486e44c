"""Checks of a score, and what the model reads from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modalities.music.score import START, check_notes, readings, transpose

CHORD = [72, 67, 64, 48]


@pytest.mark.parametrize(
    ("notes", "says"),
    [
        ([], "the piece is empty"),
        (np.zeros((0, 4), dtype=int), "the piece is empty"),
        ([CHORD, CHORD[:3]], "unequal length"),
        ([[60, 64, 67]], r"shape \[1, 3\], expected \[steps, 4\]; fill a missing voice with 0"),
        (CHORD, r"shape \[4\]"),
        ([CHORD, [72, 128, 64, 48]], r"pitch 128 at step 1, voice 1; expected 0\.\.127"),
        ([[72, 67, -1, 48]], "pitch -1 at step 0, voice 2"),
        (np.array([CHORD], dtype=float), "got float64, expected integers"),
        ([["C5", "G4", "E4", "C3"]], "expected integers"),
    ],
)
def test_what_is_no_score_is_named(notes: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_notes(notes)
    with pytest.raises(ValueError, match=r"^mine\.json: "):
        check_notes(notes, "mine.json")


def test_any_integer_type_is_taken() -> None:
    assert check_notes(np.array([CHORD], dtype=np.uint8)).dtype == np.int64


def test_readings_stand_before_each_step() -> None:
    notes = torch.tensor([[60, 0, 0, 48], [60, 0, 0, 50], [62, 0, 0, 50]])
    rows = readings(notes)
    assert rows["input"].tolist() == [[START] * 4, *notes.tolist()]
    assert rows["previous"].tolist() == [[START] * 4, [START] * 4, *notes[:2].tolist()]
    assert rows["age"].tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 1], [1, 3, 3, 2]]
    assert rows["beat"].tolist() == [0, 1, 2, 3]


def test_readings_do_not_see_ahead() -> None:
    notes = torch.randint(40, 80, (20, 4), generator=torch.Generator().manual_seed(0))
    whole, part = readings(notes), readings(notes[:7])
    assert all(torch.equal(whole[name][:8], part[name]) for name in whole)


def test_transposing_leaves_rests_and_the_start() -> None:
    assert transpose(torch.tensor([60, 0, START]), 3).tolist() == [63, 0, START]
