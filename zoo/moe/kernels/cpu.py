"""Gather, two products, activation, gate and combine in one pass over the experts, for a CPU.

One expert's rows fit in cache, so nothing of the size [N, D] is ever written: rows are gathered, pushed through the
expert and added to the output while they are hot. Gates act on the inner activation, which is narrower than the
output. The gradient is written by hand: each expert's weight gradient goes straight into its slice, and the gate's
gradient falls out of the inner activation, so outputs of single experts are never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.moe.kernels.plan import Chunk, Plan


@dataclass(frozen=True)
class Activation:
    """forward: inner [n, I] -> a [n, F], written to `out`; backward: (inner, gradient of a) -> gradient of inner
    [n, I], written to `out`, with a [n, F] written over the gradient of a."""

    forward: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


def _swiglu(inner: Tensor, out: Tensor) -> Tensor:
    gate, up = inner.chunk(2, dim=-1)
    return torch.ops.aten.silu.out(gate, out=out).mul_(up)


def _swiglu_backward(inner: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    gate, up = inner.chunk(2, dim=-1)
    grad_gate, grad_up = out.chunk(2, dim=-1)
    silu = F.silu(gate)
    torch.mul(grad, silu, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=grad_gate)
    torch.mul(silu, up, out=grad)
    return out


SWIGLU = Activation(_swiglu, _swiglu_backward)


def gelu(approximate: str) -> Activation:
    """GELU, exact ("none") or by tanh."""

    def forward(inner: Tensor, out: Tensor) -> Tensor:
        return torch.ops.aten.gelu.out(inner, approximate=approximate, out=out)

    def backward(inner: Tensor, grad: Tensor, out: Tensor) -> Tensor:
        torch.ops.aten.gelu_backward.grad_input(grad, inner, approximate=approximate, grad_input=out)
        forward(inner, grad)
        return out

    return Activation(forward, backward)


def mixture(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    expert: Tensor,
    gate: Tensor,
    activation: Activation,
    *,
    recompute: bool = False,
) -> Tensor:
    """y [T, D] = sum over slots of gate * down_e(activation(up_e(x))).

    x [T, D], up [R, I, D], down [R, D, F], expert [T, K] int64 (ids of R and above are skipped), gate [T, K].
    Differentiable in x, up, down and gate. recompute keeps no inner activation for the backward pass.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, up, down = x.to(dtype), up.to(dtype), down.to(dtype)
        with torch.autocast("cpu", enabled=False):
            return mixture(x, up, down, expert, gate, activation, recompute=recompute)
    gate = gate.to(x.dtype)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, up, down, gate)):
        plan = Plan.of(expert, len(up))
        return cast(Tensor, _Mixture.apply(x, up, down, gate, plan, activation, recompute))
    if len(x) == 1:
        return _single(x, up, down, expert, gate, activation)
    return _forward(x, up, down, gate, Plan.of(expert, len(up)), activation, keep=False)[0]


def _single(x: Tensor, up: Tensor, down: Tensor, expert: Tensor, gate: Tensor, activation: Activation) -> Tensor:
    """One token: a product of matrix and vector per slot; nothing is sorted, gathered or scattered."""
    ids, token, weight = expert[0].tolist(), x[0], gate.t()
    if max(ids, default=0) >= len(up):
        slots = [slot for slot, e in enumerate(ids) if e < len(up)]
        ids, weight = [ids[slot] for slot in slots], weight[slots]
    inner, a = x.new_empty(len(ids), up.shape[1]), x.new_empty(len(ids), down.shape[2])
    for e, out in zip(ids, inner, strict=True):
        torch.mv(up[e], token, out=out)
    y = x.new_zeros(down.shape[1])
    for e, row in zip(ids, activation.forward(inner, a).mul_(weight), strict=True):
        y.addmv_(down[e], row)
    return y[None]


def _forward(
    x: Tensor, up: Tensor, down: Tensor, gate: Tensor, plan: Plan, activation: Activation, *, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """y, and the inner activations of every chunk where they are kept."""
    # Products go into buffers: a fresh output each time costs more in page faults than it does in arithmetic.
    rows, a, out = (x.new_empty(plan.widest, width) for width in (x.shape[1], down.shape[2], down.shape[1]))
    y, weight, kept = x.new_zeros(len(x), down.shape[1]), gate.reshape(-1, 1), []
    inner = x.new_empty(0 if keep else plan.widest, up.shape[1])
    for chunk in plan.chunks:
        n = len(chunk.token)
        torch.index_select(x, 0, chunk.token, out=rows[:n])
        one = _products(rows[:n], up.mT, chunk, x.new_empty(n, up.shape[1]) if keep else inner[:n])
        activation.forward(one, a[:n]).mul_(weight.index_select(0, chunk.order))
        _products(a[:n], down.mT, chunk, out[:n])
        y.index_add_(0, chunk.token, out[:n])
        if keep:
            kept.append(one)
    return y, kept


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, down: Tensor, gate: Tensor, plan: Plan, activation: Activation, recompute: bool
    ) -> Tensor:
        y, kept = _forward(x, up, down, gate, plan, activation, keep=not recompute)
        ctx.save_for_backward(x, up, down, gate)
        ctx.plan, ctx.activation, ctx.kept = plan, activation, None if recompute else kept
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grads[0].contiguous(), *ctx.saved_tensors), None, None, None


def _products(rows: Tensor, weight: Tensor, chunk: Chunk, out: Tensor) -> Tensor:
    """out [n, O] = rows [n, I] times weight [R, I, O] of each row's expert."""
    for e, left, right in zip(chunk.expert, rows.split(chunk.count), out.split(chunk.count), strict=True):
        torch.mm(left, weight[e], out=right)
    return out


def _outer(left: Tensor, right: Tensor, chunk: Chunk, out: Tensor) -> None:
    """out[e] [A, B] = the sum over expert e's rows of left [n, A] outer right [n, B]."""
    for e, a, b in zip(chunk.expert, left.split(chunk.count), right.split(chunk.count), strict=True):
        torch.mm(a.t(), b, out=out[e])


def _gradients(ctx: Any, grad: Tensor, x: Tensor, up: Tensor, down: Tensor, gate: Tensor) -> Sequence[Tensor | None]:
    """Gradients of x, up, down and gate; None where not wanted."""
    plan: Plan = ctx.plan
    want_x, want_up, want_down, want_gate = ctx.needs_input_grad[:4]
    grad_x = torch.zeros_like(x) if want_x else None
    grad_up, grad_down = _unwritten(up, plan, want_up), _unwritten(down, plan, want_down)
    weight = gate.flatten()
    grad_gate = torch.zeros_like(weight) if want_gate else None
    widths = (x.shape[1], grad.shape[1], up.shape[1], down.shape[2])
    buffers = [x.new_empty(plan.widest, width) for width in widths]
    again = x.new_empty(plan.widest if ctx.kept is None else 0, up.shape[1])  # inner activations computed anew
    for i, chunk in enumerate(plan.chunks):
        n = len(chunk.token)
        rows, out, grad_inner, a = (buffer[:n] for buffer in buffers)
        torch.index_select(x, 0, chunk.token, out=rows)
        torch.index_select(grad, 0, chunk.token, out=out)
        inner = _products(rows, up.mT, chunk, again[:n]) if ctx.kept is None else ctx.kept[i]
        share = weight.index_select(0, chunk.order)
        _products(out, down, chunk, a)  # the gradient of the activation before its gate, then the activation itself
        unweighed = a.clone() if grad_gate is not None else a
        ctx.activation.backward(inner, a.mul_(share[:, None]), grad_inner)
        if grad_gate is not None:
            grad_gate.index_copy_(0, chunk.order, torch.linalg.vecdot(unweighed, a))
        if grad_down is not None:
            _outer(out, a.mul_(share[:, None]), chunk, grad_down)
        if grad_up is not None:
            _outer(grad_inner, rows, chunk, grad_up)
        if grad_x is not None:
            grad_x.index_add_(0, chunk.token, _products(grad_inner, up, chunk, rows))
    return grad_x, grad_up, grad_down, None if grad_gate is None else grad_gate.view_as(gate)


def _unwritten(weight: Tensor, plan: Plan, wanted: bool) -> Tensor | None:
    """Room for a gradient, zero for the experts nobody chose."""
    if not wanted:
        return None
    out = torch.empty_like(weight)
    for e in plan.idle:
        out[e] = 0
    return out
