"""What null experts add, and its gradient written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.moe.kernels.null import add_constants, add_copies


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_copies() -> None:
    torch.manual_seed(0)
    y, x, copy = drawn(5, 4), drawn(5, 4), drawn(5)
    assert torch.autograd.gradcheck(lambda y, x, copy: add_copies(y.clone(), x, copy), (y, x, copy))
    assert torch.equal(add_copies(y.clone(), x, copy), torch.addcmul(y, copy[:, None], x))


def test_constants_are_a_softmax_of_two_logits() -> None:
    torch.manual_seed(0)
    y, x, copy, gate, mix, value = drawn(5, 4), drawn(5, 4), drawn(5), drawn(5, 3), drawn(3, 2, 4), drawn(3, 4)

    def added(y: Tensor, x: Tensor, copy: Tensor, gate: Tensor, mix: Tensor, value: Tensor) -> Tensor:
        return add_constants(y.clone(), x, copy, gate, mix[:, 0] - mix[:, 1], value)

    assert torch.autograd.gradcheck(added, (y, x, copy, gate, mix, value))
    share = torch.softmax(torch.einsum("td,cad->tca", x, mix), dim=-1)
    each = share[..., 0, None] * x[:, None] + share[..., 1, None] * value
    expected = y + copy[:, None] * x + (gate[..., None] * each).sum(1)
    torch.testing.assert_close(added(y, x, copy, gate, mix, value), expected)


def test_constants_alone() -> None:
    torch.manual_seed(0)
    y, x, gate, turn, value = drawn(5, 4), drawn(5, 4), drawn(5, 3), drawn(3, 4), drawn(3, 4)
    with_zeros = add_constants(y.clone(), x, torch.zeros_like(x[:, 0]), gate, turn, value)
    torch.testing.assert_close(add_constants(y.clone(), x, None, gate, turn, value), with_zeros)
    assert torch.autograd.gradcheck(
        lambda y, *rest: add_constants(y.clone(), rest[0], None, *rest[1:]), (y, x, gate, turn, value)
    )


def test_the_gradient_of_the_gradient_is_refused() -> None:
    """What the way out left behind is no function of x any more: a second derivative of it would be a wrong number."""
    torch.manual_seed(0)
    y, x, copy, gate, turn, value = drawn(5, 4), drawn(5, 4), drawn(5), drawn(5, 3), drawn(3, 4), drawn(3, 4)
    for total in (add_copies(y.clone(), x, copy), add_constants(y.clone(), x, copy, gate, turn, value)):
        (first,) = torch.autograd.grad(total.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            first.sum().backward()
