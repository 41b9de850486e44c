from __future__ import annotations

import numpy as np
import pytest
import torch

from modalities.time_series.values import as_series, moments


def test_numbers_of_any_kind_become_float64() -> None:
    for values in ([1, 2, 3], np.array([1, 2, 3], np.int16), torch.tensor([1.0, 2.0, 3.0])):
        series = as_series(values, 1)
        assert series.dtype == torch.float64 and series.tolist() == [1, 2, 3]
    assert as_series([[1, 2], [3, 4]], 2, batched=True).shape == (2, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, float("nan"), 2.0, float("nan")], r"value at index 1 is nan \(2 such values\); expected finite numbers"),
        ([1.0, 2.0, float("-inf")], "value at index 2 is -inf"),
        ([1.0], "got 1 values, expected at least 2; give a longer history"),
        ([], "got 0 values"),
        (3.0, r"got shape \[\], expected \[n\], one series per channel"),
        ([[1.0, 2.0]], r"got shape \[1, 2\], expected \[n\], one series per channel"),
        (["a", "b"], "expected numbers, got list"),
        ([[1.0], [1.0, 2.0]], "expected numbers, got list"),
    ],
)
def test_bad_series_are_named(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"series: {message}"):
        as_series(values, 2)


def test_a_batch_names_row_and_index() -> None:
    with pytest.raises(ValueError, match=r"value at index \[1, 0\] is inf"):
        as_series([[1.0, 2.0], [float("inf"), 0.0]], 2, batched=True)
    with pytest.raises(ValueError, match=r"got shape \[1, 1, 2\], expected \[n\] or \[B, n\]"):
        as_series([[[1.0, 2.0]]], 2, batched=True)


def test_moments_are_those_of_the_population() -> None:
    series = torch.tensor([[1.0, 2.0, 3.0, 6.0], [1e-9, 2e-9, 3e-9, 6e-9]], dtype=torch.float64)
    mean, deviation = moments(series)
    assert torch.allclose(mean, series.mean(1, keepdim=True))
    assert torch.allclose(deviation, series.std(1, keepdim=True, correction=0))


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e8])
def test_a_constant_series_is_centred_only(value: float) -> None:
    mean, deviation = moments(torch.full((50,), value, dtype=torch.float32).double())
    assert deviation.item() == 1 and mean.item() == pytest.approx(value)
