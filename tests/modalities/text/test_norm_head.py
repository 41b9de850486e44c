"""NormHead: unit columns or rows, no matter the size of the weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modalities.text.norm_head import normalised


@pytest.mark.parametrize(("over", "dim"), [("columns", 0), ("rows", 1)])
def test_lengths_are_one_and_a_factor_changes_nothing(over: Any, dim: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(30, 8, dtype=torch.float64)
    found = normalised(weight, over)
    tolerance = 1e-7 / float(weight.norm(dim=dim).min())
    torch.testing.assert_close(found.norm(dim=dim), torch.ones(found.shape[1 - dim]).double(), atol=tolerance, rtol=0)
    for factor in (0.1, 7.0):
        torch.testing.assert_close(normalised(factor * weight, over), found, atol=10 * tolerance, rtol=0)
    torch.testing.assert_close(normalised(found, over), found, atol=2e-7, rtol=0)


def test_lengths_get_no_gradient() -> None:
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    normalised(weight, "columns").sum().backward()
    assert weight.grad is not None
    expected = (1 / (weight.detach().norm(dim=0) + 1e-7)).expand(5, 3)
    torch.testing.assert_close(weight.grad, expected)
