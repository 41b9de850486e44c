"""What stands between an expert's two products, with its gradient written by hand into buffers that are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """forward: inner [n, I] -> a [n, F], written to `out`; backward: (inner, gradient of a) -> gradient of inner
    [n, I], written to `out`, with a [n, F] written over the gradient of a. `inner` is left as it is."""

    forward: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def elementwise(name: str) -> Activation:
    """silu, gelu (exact), gelu_tanh or relu of every element: I = F.

    Raises KeyError where the name is none of these."""
    value, slope = _ELEMENTWISE[name]

    def backward(inner: Tensor, grad: Tensor, out: Tensor) -> Tensor:
        slope(grad, inner, out)
        value(inner, grad)
        return out

    return Activation(value, backward)


@cache
def gated(name: str, alpha: float = 1.0, limit: float | None = None, offset: float = 0.0) -> Activation:
    """f(alpha g) / alpha * (u + offset) of inner = [g, u], I = 2F, with f by name as in `elementwise`; with a limit, g
    is clamped to at most it and u to plus or minus it first (SwiGLU, arXiv 2002.05202; gpt-oss)."""
    value, slope = _ELEMENTWISE[name]
    usual = alpha == 1 and limit is None and offset == 0

    def parts(inner: Tensor) -> tuple[Tensor, Tensor]:
        """alpha g and u + offset, both after the clamp."""
        gate, up = inner.chunk(2, dim=-1)
        if usual:
            return gate, up
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * alpha, up + offset

    def forward(inner: Tensor, out: Tensor) -> Tensor:
        gate, up = parts(inner)
        value(gate, out)
        return (out if alpha == 1 else out.div_(alpha)).mul_(up)

    def backward(inner: Tensor, grad: Tensor, out: Tensor) -> Tensor:
        gate, up = parts(inner)
        grad_gate, grad_up = out.chunk(2, dim=-1)
        active = value(gate, torch.empty_like(grad))
        if alpha != 1:
            active.div_(alpha)
        torch.mul(grad, active, out=grad_up)
        slope(grad.mul_(up), gate, grad_gate)
        torch.mul(active, up, out=grad)
        if limit is not None:
            bound = inner.chunk(2, dim=-1)
            grad_gate.masked_fill_(bound[0] > limit, 0)
            grad_up.masked_fill_(bound[1].abs() > limit, 0)
        return out

    return Activation(forward, backward)


def _silu(x: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.silu.out(x, out=out)


def _silu_slope(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=out)


def _gelu(x: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.gelu.out(x, out=out)


def _gelu_slope(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=out)


def _gelu_tanh(x: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.gelu.out(x, approximate="tanh", out=out)


def _gelu_tanh_slope(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward.grad_input(grad, x, approximate="tanh", grad_input=out)


def _relu(x: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.relu.out(x, out=out)


def _relu_slope(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=out)


# name -> the function (x, out) and its gradient (gradient of the result, x, out)
_ELEMENTWISE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "silu": (_silu, _silu_slope),
    "gelu": (_gelu, _gelu_slope),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope),
    "relu": (_relu, _relu_slope),
}
