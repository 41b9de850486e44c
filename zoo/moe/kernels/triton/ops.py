"""The fused mixture as `torch.library` operators: shapes for tracing, gradients, checks of what comes in."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.moe.kernels.triton.hidden_grad import hidden_grad
from zoo.moe.kernels.triton.outer import outer
from zoo.moe.kernels.triton.plan import Plan, plan
from zoo.moe.kernels.triton.scatter import scatter_sum
from zoo.moe.kernels.triton.settings import tiling
from zoo.moe.kernels.triton.up import up


def mixture(x: Tensor, gate_up: Tensor, down: Tensor, expert: Tensor, gate: Tensor, recompute: bool) -> Tensor:
    """See `zoo.moe.kernels.triton.swiglu_mixture`."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
    _check(x, gate_up, down, expert, gate)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, gate_up, down, gate))
    experts = gate_up.shape[0]
    height = tiling(expert.shape[0] * expert.shape[1], experts, x.dtype).rows
    rows = plan(expert, experts, height)
    y: Tensor = torch.ops.moezoo.swiglu_mixture(
        x.contiguous(), gate_up, down, expert.contiguous(), gate.contiguous(), *rows, wanted and not recompute
    )[0]
    return y


def _check(x: Tensor, gate_up: Tensor, down: Tensor, expert: Tensor, gate: Tensor) -> None:
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"x: got dtype {x.dtype}, expected torch.bfloat16 or torch.float32")
    if expert.dtype != torch.int64:
        raise TypeError(f"expert: got dtype {expert.dtype}, expected torch.int64")
    if x.dim() != 2 or expert.dim() != 2 or gate_up.dim() != 3:
        raise ValueError(
            f"x, expert, gate_up: got shapes {tuple(x.shape)}, {tuple(expert.shape)}, {tuple(gate_up.shape)}, "
            "expected [T, D], [T, K], [R, 2F, D]"
        )
    (tokens, dim), (experts, double) = x.shape, gate_up.shape[:2]
    shapes = {
        "gate_up": (gate_up, (experts, double - double % 2, dim)),
        "down": (down, (experts, dim, double // 2)),
        "expert": (expert, (tokens, expert.shape[1])),
        "gate": (gate, tuple(expert.shape)),
    }
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape} beside x {tuple(x.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: on {tensor.device}, but x is on {x.device}")
    for name, tensor in (("gate_up", gate_up), ("down", down)):
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {x.dtype} as x has")
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: {tuple(tensor.shape)} is not contiguous (strides {tensor.stride()})")


@torch.library.custom_op("moezoo::swiglu_mixture", mutates_args=())
def _mixture(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    expert: Tensor,
    gate: Tensor,
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y [T, D], and the preactivations [N, 2F] where they are to be kept."""
    rows = Plan(order, offsets, tiles)
    cut = tiling(len(order), gate_up.shape[0], x.dtype)
    h, pre = up(x, gate_up, rows, expert.shape[1], cut.rows, cut.up, hidden=True, preact=keep)
    return scatter_sum(h, down, gate, expert, rows, cut.rows, cut.scatter, transposed=False), pre


@_mixture.register_fake
def _(x, gate_up, down, expert, gate, order, offsets, tiles, keep):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), x.new_empty(order.shape[0] if keep else 0, gate_up.shape[1])


@torch.library.custom_op("moezoo::swiglu_preact", mutates_args=())
def _preact(x: Tensor, gate_up: Tensor, order: Tensor, offsets: Tensor, tiles: Tensor, slots: int) -> Tensor:
    """The preactivations [N, 2F] anew."""
    cut = tiling(len(order), gate_up.shape[0], x.dtype)
    return up(x, gate_up, Plan(order, offsets, tiles), slots, cut.rows, cut.up, hidden=False, preact=True)[1]


@_preact.register_fake
def _(x, gate_up, order, offsets, tiles, slots):  # type: ignore[no-untyped-def]
    return x.new_empty(order.shape[0], gate_up.shape[1])


@torch.library.custom_op("moezoo::swiglu_hidden_grad", mutates_args=())
def _hidden_grad(
    grad: Tensor, down: Tensor, pre: Tensor, gate: Tensor, order: Tensor, offsets: Tensor, tiles: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the preactivations [N, 2F], gate * h [N, F], gradient of the gate [T, K]."""
    cut = tiling(len(order), down.shape[0], grad.dtype)
    return hidden_grad(grad, down, pre, gate, Plan(order, offsets, tiles), cut.rows, cut.hidden)


@_hidden_grad.register_fake
def _(grad, down, pre, gate, order, offsets, tiles):  # type: ignore[no-untyped-def]
    return torch.empty_like(pre), pre.new_empty(pre.shape[0], down.shape[2]), torch.empty_like(gate)


@torch.library.custom_op("moezoo::swiglu_input_grad", mutates_args=())
def _input_grad(
    grad_pre: Tensor, gate_up: Tensor, expert: Tensor, order: Tensor, offsets: Tensor, tiles: Tensor
) -> Tensor:
    """Gradient of x [T, D]."""
    cut = tiling(len(order), gate_up.shape[0], grad_pre.dtype)
    rows = Plan(order, offsets, tiles)
    return scatter_sum(grad_pre, gate_up, None, expert, rows, cut.rows, cut.scatter, transposed=True)


@_input_grad.register_fake
def _(grad_pre, gate_up, expert, order, offsets, tiles):  # type: ignore[no-untyped-def]
    return grad_pre.new_empty(expert.shape[0], gate_up.shape[2])


@torch.library.custom_op("moezoo::gathered_outer", mutates_args=())
def _gathered_outer(
    left: Tensor, right: Tensor, order: Tensor, offsets: Tensor, tiles: Tensor, slots: int, transposed: bool
) -> Tensor:
    """left [N, L] sorted, right [T, D] -> [R, L, D] or, transposed, [R, D, L]."""
    cut = tiling(len(order), len(offsets) - 1, left.dtype)
    return outer(left, right, Plan(order, offsets, tiles), slots, cut.outer, transposed=transposed)


@_gathered_outer.register_fake
def _(left, right, order, offsets, tiles, slots, transposed):  # type: ignore[no-untyped-def]
    shape = (right.shape[1], left.shape[1]) if transposed else (left.shape[1], right.shape[1])
    return left.new_empty(offsets.shape[0] - 1, *shape)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, keep = inputs
    pre = output[1]
    ctx.mark_non_differentiable(pre)
    ctx.set_materialize_grads(False)  # else a gradient as large as the preactivations would be made for them
    ctx.kept = keep
    ctx.save_for_backward(*tensors, pre)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    x, gate_up, down, expert, gate, order, offsets, tiles, pre = ctx.saved_tensors
    needs = ctx.needs_input_grad
    ops, rows, slots = torch.ops.moezoo, (order, offsets, tiles), expert.shape[1]
    if grad is None:
        return (None,) * 9
    grad = grad.contiguous()
    if not ctx.kept:
        pre = ops.swiglu_preact(x, gate_up, *rows, slots)
    grad_pre, weighed, grad_gate = ops.swiglu_hidden_grad(grad, down, pre, gate, *rows)
    grad_down = ops.gathered_outer(weighed, grad, *rows, slots, True) if needs[2] else None
    del weighed  # its memory serves the next
    grad_gate_up = ops.gathered_outer(grad_pre, x, *rows, slots, False) if needs[1] else None
    grad_x = ops.swiglu_input_grad(grad_pre, gate_up, expert, *rows) if needs[0] else None
    return grad_x, grad_gate_up, grad_down, None, grad_gate if needs[4] else None, None, None, None, None


_mixture.register_autograd(_backward, setup_context=_setup)
