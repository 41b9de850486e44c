"""What copy and constant experts add, whatever their number: y + scale x + share values.

Written by hand with its gradient, because null experts are worth having only where they cost next to nothing: every
row is read once on the way out and once on the way back. The sum is written over y, which has to be the caller's own:
a fresh [T, D] costs more in page faults than all the arithmetic here. The gradient reads what the way out left behind,
so it cannot be differentiated in its turn, and says so.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def add_copies(y: Tensor, x: Tensor, copy: Tensor) -> Tensor:
    """y [T, D] += copy [T] x [T, D]."""
    return cast(Tensor, _Copies.apply(y, x, copy))


def add_constants(y: Tensor, x: Tensor, copy: Tensor | None, gate: Tensor, turn: Tensor, value: Tensor) -> Tensor:
    """y [T, D] += copy [T] x + sum over c of gate_c (a_c x + (1 - a_c) value_c), a = sigmoid(turn x).

    x [T, D], gate [T, C] in float32 at least, turn and value [C, D]; copy None for 0. Differentiable in all of them.
    """
    return cast(Tensor, _Constants.apply(y, x, copy, gate, turn, value))


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, copy: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, copy)
        return y.addcmul_(copy[:, None].to(x.dtype), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, copy) = grads, ctx.saved_tensors
        grad_x = grad * copy[:, None].to(grad.dtype) if ctx.needs_input_grad[1] else None
        return grad, grad_x, torch.linalg.vecdot(grad, x) if ctx.needs_input_grad[2] else None


class _Constants(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, copy: Tensor | None, gate: Tensor, turn: Tensor, value: Tensor
    ) -> Tensor:
        turn, value = turn.to(x.dtype), value.to(x.dtype)
        part = torch.sigmoid(F.linear(x, turn).to(gate.dtype))
        kept = gate * part
        scale = kept.sum(1) if copy is None else kept.sum(1) + copy
        scale, share = scale[:, None].to(x.dtype), (gate - kept).to(x.dtype)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, scale, share, gate, part, turn, value)
        return y.addmm_(share, value).addcmul_(scale, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, scale, share, gate, part, turn, value) = grads, ctx.saved_tensors
        to_x, to_value = torch.linalg.vecdot(grad, x).to(gate.dtype), F.linear(grad, value).to(gate.dtype)
        ahead = to_x[:, None] - to_value
        grad_turn = (gate * part * (1 - part) * ahead).to(x.dtype)  # of turn x
        grad_x = torch.mm(grad_turn, turn).addcmul_(scale, grad) if ctx.needs_input_grad[1] else None
        grad_copy = to_x if ctx.needs_input_grad[2] else None
        return grad, grad_x, grad_copy, to_value + part * ahead, grad_turn.t() @ x, share.t() @ grad
