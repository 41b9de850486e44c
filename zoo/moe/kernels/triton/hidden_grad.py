"""From dL/dy back to the preactivations, in one kernel, without the experts' outputs.

With r = down_e^T dy (dy of the row's token), the gate's gradient <dy, down_e h> equals <r, h>; so one product gives
both it and dL/dh = gate * r (the same rearrangement as in SonicMoE, arXiv 2512.14080).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.moe.kernels.triton.launch import launch
from zoo.moe.kernels.triton.plan import Plan
from zoo.moe.kernels.triton.settings import Tile
from zoo.moe.kernels.triton.tile import halves, place, product


def hidden_grad(
    grad: Tensor, down: Tensor, pre: Tensor, gate: Tensor, rows: Plan, height: int, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """grad [T, D], pre [N, 2F] -> gradient of pre [N, 2F], gate * h [N, F] (both sorted), gradient of gate [T, K]."""
    experts, dim, width = down.shape
    grad_pre, weighed = torch.empty_like(pre), pre.new_empty(len(pre), width)
    # Every block of columns holds its part of the gate's gradient, added up in a fixed order; skipped slots stay zero.
    parts = torch.zeros(len(pre), triton.cdiv(width, tile.columns), dtype=torch.float32, device=pre.device)
    constants = {"EXPERTS": experts, "DIM": dim, "HIDDEN": width, "SLOTS": gate.shape[1]}
    results = (grad_pre, weighed, parts)
    launch(hidden_grad_kernel, rows, tile, height, dim, width, grad, down, pre, gate, *results, **constants)
    return grad_pre, weighed, parts.sum(1).view(gate.shape).to(gate.dtype)


@triton.jit(do_not_specialize=["tile_count", "inner"])
def hidden_grad_kernel(  # type: ignore[no-untyped-def]
    order,
    tiles,
    tile_count,
    inner,
    grad,
    down,
    pre,
    gate,
    grad_pre,
    weighed,
    parts,
    EXPERTS: tl.constexpr,
    DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLOTS: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of HEIGHT rows x COLUMNS hidden units."""
    expert, first, end, column_tile, column, wide = place(tiles, tile_count, HIDDEN, COLUMNS)
    if expert >= EXPERTS:
        return
    row = first + tl.arange(0, HEIGHT)
    live = row < end
    slot = tl.load(order + tl.minimum(row, end - 1))
    depth = tl.arange(0, DEPTH)

    grad_at = grad + (slot // SLOTS).to(tl.int64)[:, None] * DIM + depth[None, :]
    down_at = down + expert.to(tl.int64) * (DIM * HIDDEN) + column[None, :] + depth[:, None] * HIDDEN
    back = product(grad_at, down_at, wide, inner, HIDDEN, DIM, DEPTH, PRECISION)

    weight = tl.load(gate + slot).to(tl.float32)[:, None]
    # One 64-bit base and 32-bit offsets, and a quarter of the columns at a time: all would not fit into the registers.
    weighed += first.to(tl.int64) * HIDDEN
    pre += first.to(tl.int64) * (2 * HIDDEN)
    grad_pre += first.to(tl.int64) * (2 * HIDDEN)
    left, right = halves(back)
    quarters = halves(left) + halves(right)
    part = tl.zeros((HEIGHT,), tl.float32)
    for i in tl.static_range(4):
        start = column_tile * COLUMNS + i * (COLUMNS // 4)
        part += activation_grad(quarters[i], weight, live, pre, grad_pre, weighed, start, HIDDEN)
    tl.store(parts + slot * tl.cdiv(HIDDEN, COLUMNS) + column_tile, part, mask=live)


@triton.jit
def activation_grad(back, weight, live, pre, grad_pre, weighed, start, HIDDEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stores what follows from back [HEIGHT, C], columns start.. of r; returns their share of <r, h> per row."""
    column = start + tl.arange(0, back.shape[1])[None, :]
    row = tl.arange(0, back.shape[0])[:, None]
    stored = live[:, None] & (column < HIDDEN)
    at = row * (2 * HIDDEN) + column
    gated = tl.load(pre + at, mask=stored, other=0.0).to(tl.float32)
    linear = tl.load(pre + at + HIDDEN, mask=stored, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gated)
    silu = gated * sigmoid
    h = silu * linear
    tl.store(weighed + row * HIDDEN + column, (weight * h).to(weighed.dtype.element_ty), mask=stored)
    scaled = back * weight
    slope = sigmoid + silu * (1.0 - sigmoid)
    tl.store(grad_pre + at, (scaled * linear * slope).to(grad_pre.dtype.element_ty), mask=stored)
    tl.store(grad_pre + at + HIDDEN, (scaled * silu).to(grad_pre.dtype.element_ty), mask=stored)
    return tl.sum(back * h, 1)
