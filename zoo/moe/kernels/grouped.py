"""Grouped matrix product over rows sorted by expert: `torch.ops.moezoo.grouped_linear`.

torch's own `grouped_mm` refuses float64, knows bfloat16 alone in its fake kernel and leaves rows behind the last
offset unwritten; this operator is defined for every dtype, zeroes those rows and has its own gradient. On a CPU a
loop over contiguous slices is as fast as the fused product (one GEMM per expert either way).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """x [N, D] sorted by expert, weight [R, F, D], counts [R] int64 -> [N, F]; rows behind sum(counts) are zero."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return torch.ops.moezoo.grouped_linear(x, weight, counts)


@torch.library.custom_op("moezoo::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float32):
        return _zero_tail(F.grouped_mm(x.contiguous(), weight.mT, offs=_offsets(counts)), counts)
    out = x.new_empty(len(x), weight.shape[1])
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            torch.mm(x[start : start + count], weight[expert].t(), out=out[start : start + count])
            start += count
    out[start:] = 0
    return out


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("moezoo::grouped_outer", mutates_args=())
def _grouped_outer(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    """left [N, F], right [N, D] -> [R, F, D]: per expert, the sum over its rows of left outer right."""
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float32):
        return F.grouped_mm(left.contiguous().t(), right.contiguous(), offs=_offsets(counts))
    out = left.new_empty(len(counts), left.shape[1], right.shape[1])
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            torch.mm(left[start : start + count].t(), right[start : start + count], out=out[expert])
            start += count
        else:
            out[expert] = 0
    return out


@_grouped_outer.register_fake
def _(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    return left.new_empty(counts.shape[0], left.shape[1], right.shape[1])


def _offsets(counts: Tensor) -> Tensor:
    return counts.cumsum(0, dtype=torch.int32)


def _zero_tail(out: Tensor, counts: Tensor) -> Tensor:
    return torch.where(torch.arange(len(out), device=out.device)[:, None] < counts.sum(), out, 0)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    x, weight, counts = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.moezoo.grouped_linear(grad, weight.mT, counts)
    if ctx.needs_input_grad[1]:
        grad_weight = torch.ops.moezoo.grouped_outer(grad, x, counts)
    return grad_x, grad_weight, None


_grouped_linear.register_autograd(_backward, setup_context=_setup)
