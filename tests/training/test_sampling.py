"""Draws are even, and functions of their place alone."""

from __future__ import annotations

import numpy as np
import pytest

from training.sampling import counts_before, picks, rows
from training.seeds import derive, generator


def test_every_source_comes_as_often_as_it_weighs() -> None:
    weights = [3.0, 1.0, 2.0]
    chosen = picks(0, weights, np.arange(600), 2)
    assert np.bincount(chosen.ravel()) == pytest.approx([600, 200, 400], abs=3)
    for start in range(0, 580, 7):  # in any ten steps too
        assert np.bincount(chosen[start : start + 10].ravel(), minlength=3) == pytest.approx([10, 3.3, 6.7], abs=2)


def test_as_many_slots_as_equal_sources_hold_each_once() -> None:
    chosen = picks(5, [1.0] * 6, np.arange(200), 6)
    assert (np.sort(chosen, axis=1) == np.arange(6)).all()


def test_counts_are_those_of_the_steps_before() -> None:
    weights = [1.0, 0.3]
    chosen = picks(1, weights, np.arange(50), 3)
    assert (counts_before(1, weights, 50, 3) == np.bincount(chosen.ravel())).all()
    assert counts_before(1, weights, 0, 3).tolist() == [0, 0]


def test_an_epoch_holds_every_row_once_and_the_next_is_another_order() -> None:
    first, second = (list(rows(0, "text", 10, start, 10)) for start in (0, 10))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert list(rows(0, "text", 10, 7, 6)) == first[7:] + second[:3]
    assert list(rows(1, "text", 10, 0, 10)) != first and list(rows(0, "music", 10, 0, 10)) != first


def test_seeds_are_small_and_differ() -> None:
    found = {derive(0, "noise", step, micro) for step in range(100) for micro in range(4)}
    assert len(found) == 400 and max(found) < 2**40
    assert generator(1, "a").initial_seed() == generator(1, "a").initial_seed()
