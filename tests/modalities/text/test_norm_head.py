"""NormHead: unit columns or rows, no matter the size of the weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modalities.base import Tokens
from modalities.text.norm_head import normalised
from modalities.text.spec import TextSpec


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


@pytest.mark.parametrize("tie", [True, False])
def test_the_size_of_the_head_changes_no_logit_and_no_loss(tie: bool) -> None:
    torch.manual_seed(0)
    text = TextSpec(length=8, tie=tie, head_norm="columns").build(16).double()
    batch = text.batch([torch.tensor([5, 6, 7, 8]), torch.tensor([9, 10])])
    hidden = Tokens(embedding=torch.randn(2, 4, 16, dtype=torch.float64), mask=batch["mask"])
    before = text.decode(hidden), text.loss(hidden, batch).total
    with torch.no_grad():
        (text.embedding if text.head is None else text.head).weight.mul_(3)
    torch.testing.assert_close(text.decode(hidden), before[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(text.loss(hidden, batch).total, before[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(text.head_weight.norm(dim=0), torch.ones(16).double(), atol=1e-6, rtol=0)


def test_evaluation_leaves_the_weight_as_it_was() -> None:
    text = TextSpec(length=8, tie=False, head_norm="columns").build(16)
    assert text.head is not None
    before = text.head.weight.detach().clone()
    for _ in range(2):
        text.eval().logits(torch.randn(3, 16))
    assert torch.equal(text.head.weight, before)


@pytest.mark.parametrize("over", ["columns", "rows"])
def test_the_loss_reaches_the_weight_as_plain_autograd_says(over: Any) -> None:
    torch.manual_seed(0)
    text = TextSpec(length=8, tie=False, head_norm=over).build(16).double()
    batch = text.batch([torch.tensor([5, 6, 7, 8])])
    hidden = torch.randn(1, 4, 16, dtype=torch.float64)
    text.loss(Tokens(embedding=hidden, mask=batch["mask"]), batch).total.backward()
    assert text.head is not None and text.head.weight.grad is not None
    found, text.head.weight.grad = text.head.weight.grad.clone(), None
    torch.nn.functional.cross_entropy(text.logits(hidden)[0], batch["target"][0], reduction="sum").backward()
    torch.testing.assert_close(found, text.head.weight.grad)


def test_logits_cannot_drift_at_a_high_learning_rate() -> None:
    """200 large steps that want one id: the plain head grows without end, columns of length 1 cannot."""
    sizes = {}
    for norm in ("none", "columns"):
        torch.manual_seed(0)
        text = TextSpec(length=8, tie=False, head_norm=norm).build(16)
        optimizer = torch.optim.AdamW(text.parameters(), lr=3e-2, weight_decay=0.0)
        hidden, target = torch.randn(64, 16), torch.full((64,), 7)
        for _ in range(200):
            optimizer.zero_grad()
            text.cross_entropy(hidden, target)[0].backward()
            optimizer.step()
        sizes[norm] = float(text.head_weight.detach().norm())
    assert sizes["columns"] == pytest.approx(4.0, rel=1e-3) and sizes["none"] > 4 * sizes["columns"]
