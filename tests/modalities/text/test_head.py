"""The head's product in blocks equals torch's linear."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from modalities.text.head import BLOCK, FEW, head_product


@pytest.mark.parametrize("shape", [(3,), (4,), (8,), (2, 4), (13,), (14,)])
@pytest.mark.parametrize("rows", [8 * BLOCK, 8 * BLOCK + 1])
def test_blocks_give_the_same_logits(shape: tuple[int, ...], rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*shape, 16, generator=generator)
    weight, bias = torch.randn(rows, 16, generator=generator), torch.randn(rows, generator=generator)
    with torch.inference_mode():
        for b in (None, bias):
            torch.testing.assert_close(head_product(hidden, weight, b), F.linear(hidden, weight, b))


def test_no_rows_and_gradients() -> None:
    weight = torch.randn(8 * BLOCK, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.inference_mode():
        assert head_product(torch.empty(0, 16), weight, None).shape == (0, 8 * BLOCK)
    hidden = torch.ones(FEW.start, 16)
    head_product(hidden, weight, None).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.full_like(weight, FEW.start))
