"""Gather, two products, activation, gate and combine in one pass over the experts, for a CPU.

One expert's rows fit in cache, so nothing of the size [N, D] is ever written: rows are gathered, pushed through the
expert and added to the output while they are hot. Gates act on the inner activation, which is narrower than the
output. The gradient is written by hand: each expert's weight gradient goes straight into its slice, and the gate's
gradient falls out of the inner activation, so outputs of single experts are never kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from zoo.moe.kernels.activations import Activation
from zoo.moe.kernels.plan import Plan
from zoo.moe.kernels.products import back, linear, outer


def mixture(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    expert: Tensor,
    gate: Tensor,
    activation: Activation,
    *,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """y [T, D] = sum over slots of gate * (down_e(activation(up_e(x) + up_bias_e)) + down_bias_e).

    x [T, D], up [R, I, D], down [R, D, F], expert [T, K] int64 (ids of R and above are skipped), gate [T, K], up_bias
    [R, I], down_bias [R, D]. Differentiable in all but expert. recompute keeps no inner activation for the backward
    pass.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, up, down = x.to(dtype), up.to(dtype), down.to(dtype)
        up_bias, down_bias = (None if bias is None else bias.to(dtype) for bias in (up_bias, down_bias))
        with torch.autocast("cpu", enabled=False):
            return mixture(
                x, up, down, expert, gate, activation, up_bias=up_bias, down_bias=down_bias, recompute=recompute
            )
    gate = gate.to(x.dtype)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, up, down, gate, up_bias))
    if learns:
        y = cast(Tensor, _Mixture.apply(x, up, down, gate, up_bias, Plan.of(expert, len(up)), activation, recompute))
    elif len(x) == 1:
        y = _single(x, up, down, expert, gate, up_bias, activation)
    else:
        y = _forward(x, up, down, gate, up_bias, Plan.of(expert, len(up)), activation, keep=False)[0]
    return y if down_bias is None else torch.addmm(y, _dense(gate, expert, len(up)), down_bias)


def _dense(gate: Tensor, expert: Tensor, routed: int) -> Tensor:
    """[T, R] the weight of every routed expert."""
    spread = gate.new_zeros(len(gate), routed + 1)
    return spread.scatter_add(1, expert.clamp(max=routed), gate)[:, :routed]


def _single(
    x: Tensor, up: Tensor, down: Tensor, expert: Tensor, gate: Tensor, up_bias: Tensor | None, activation: Activation
) -> Tensor:
    """One token: a product of matrix and vector per slot; nothing is sorted, gathered or scattered."""
    ids, token, weight = expert[0].tolist(), x[0], gate.t()
    if max(ids, default=0) >= len(up):
        slots = [slot for slot, e in enumerate(ids) if e < len(up)]
        ids, weight = [ids[slot] for slot in slots], weight[slots]
    inner, a = x.new_empty(len(ids), up.shape[1]), x.new_empty(len(ids), down.shape[2])
    for e, out in zip(ids, inner, strict=True):
        torch.mv(up[e], token, out=out)
    if up_bias is not None:
        inner.add_(up_bias[ids])
    y = x.new_zeros(down.shape[1])
    for e, row in zip(ids, activation.forward(inner, a).mul_(weight), strict=True):
        y.addmv_(down[e], row)
    return y[None]


def _forward(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor,
    up_bias: Tensor | None,
    plan: Plan,
    activation: Activation,
    *,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """y, and the inner activations of every chunk where they are kept."""
    # Products go into buffers: a fresh output each time costs more in page faults than it does in arithmetic.
    rows, a, out = (x.new_empty(plan.widest, width) for width in (x.shape[1], down.shape[2], down.shape[1]))
    y, weight, kept = x.new_zeros(len(x), down.shape[1]), gate.reshape(-1, 1), []
    inner = x.new_empty(0 if keep else plan.widest, up.shape[1])
    for chunk in plan.chunks:
        n = len(chunk.token)
        torch.index_select(x, 0, chunk.token, out=rows[:n])
        one = linear(rows[:n], up, chunk, x.new_empty(n, up.shape[1]) if keep else inner[:n], up_bias)
        activation.forward(one, a[:n]).mul_(weight.index_select(0, chunk.order))
        linear(a[:n], down, chunk, out[:n])
        y.index_add_(0, chunk.token, out[:n])
        if keep:
            kept.append(one)
    return y, kept


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        down: Tensor,
        gate: Tensor,
        up_bias: Tensor | None,
        plan: Plan,
        activation: Activation,
        recompute: bool,
    ) -> Tensor:
        y, kept = _forward(x, up, down, gate, up_bias, plan, activation, keep=not recompute)
        ctx.save_for_backward(x, up, down, gate, up_bias, *kept)  # what hangs on ctx itself outlives the backward pass
        ctx.plan, ctx.activation = plan, activation
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grads[0].contiguous(), *ctx.saved_tensors), None, None, None


def _gradients(
    ctx: Any, grad: Tensor, x: Tensor, up: Tensor, down: Tensor, gate: Tensor, up_bias: Tensor | None, *kept: Tensor
) -> Sequence[Tensor | None]:
    """Gradients of x, up, down, gate and up_bias; None where not wanted. kept holds the inner activations of every
    chunk, or nothing."""
    plan: Plan = ctx.plan
    want_x, want_up, want_down, want_gate, want_bias = ctx.needs_input_grad[:5]
    grad_x = torch.zeros_like(x) if want_x else None
    grad_up, grad_down = _unwritten(up, plan, want_up), _unwritten(down, plan, want_down)
    grad_bias = None if up_bias is None else _unwritten(up_bias, plan, want_bias)
    weight = gate.flatten()
    grad_gate = torch.zeros_like(weight) if want_gate else None
    widths = (x.shape[1], grad.shape[1], up.shape[1], down.shape[2], down.shape[2])
    buffers = [x.new_empty(plan.widest, width) for width in widths]
    again = x.new_empty(0 if kept else plan.widest, up.shape[1])  # inner activations computed anew
    for i, chunk in enumerate(plan.chunks):
        n = len(chunk.token)
        rows, out, grad_inner, ungated, a = (buffer[:n] for buffer in buffers)
        torch.index_select(x, 0, chunk.token, out=rows)
        torch.index_select(grad, 0, chunk.token, out=out)
        inner = kept[i] if kept else linear(rows, up, chunk, again[:n], up_bias)
        share = weight.index_select(0, chunk.order)
        back(out, down, chunk, ungated)
        torch.mul(ungated, share[:, None], out=a)  # the gradient of the activation, which then takes its place
        ctx.activation.backward(inner, a, grad_inner)
        if grad_gate is not None:
            grad_gate.index_copy_(0, chunk.order, torch.linalg.vecdot(ungated, a))
        if grad_down is not None:
            outer(out, a.mul_(share[:, None]), chunk, grad_down)
        if grad_up is not None:
            outer(grad_inner, rows, chunk, grad_up)
        if grad_bias is not None:
            for e, part in zip(chunk.expert, grad_inner.split(chunk.count), strict=True):
                torch.sum(part, 0, out=grad_bias[e])
        if grad_x is not None:
            grad_x.index_add_(0, chunk.token, back(grad_inner, up, chunk, rows))
    return grad_x, grad_up, grad_down, None if grad_gate is None else grad_gate.view_as(gate), grad_bias


def _unwritten(weight: Tensor, plan: Plan, wanted: bool) -> Tensor | None:
    """Room for a gradient, zero for the experts nobody chose."""
    if not wanted:
        return None
    out = torch.empty_like(weight)
    for e in plan.idle:
        out[e] = 0
    return out
