"""From dL/dy back to the preactivations, in one kernel, without the experts' outputs.

With r = down_e^T dy (dy of the row's token), the gate's gradient <dy, down_e h> equals <r, h>; so one product gives
both it and dL/dh = gate * r (the same rearrangement as in SonicMoE, arXiv 2512.14080).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.moe.kernels.triton.plan import Plan
from zoo.moe.kernels.triton.settings import Tile
from zoo.moe.kernels.triton.tile import GROUP, halves, on, place, precision, span


def hidden_grad(
    grad: Tensor, down: Tensor, pre: Tensor, gate: Tensor, rows: Plan, height: int, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """grad [T, D], pre [N, 2F] -> gradient of pre [N, 2F], gate * h [N, F] (both sorted), gradient of gate [T, K]."""
    experts, dim, width = down.shape
    column_tiles = triton.cdiv(width, tile.columns)
    grad_pre, weighed = torch.empty_like(pre), pre.new_empty(len(pre), width)
    # Every block of columns holds its part of the gate's gradient, added up in a fixed order; skipped slots stay zero.
    parts = torch.zeros(len(pre), column_tiles, dtype=torch.float32, device=pre.device)
    if len(pre):
        with on(grad):
            hidden_grad_kernel[(len(rows.tiles) * column_tiles,)](
                grad,
                down,
                pre,
                gate,
                rows.order,
                rows.tiles,
                grad_pre,
                weighed,
                parts,
                len(rows.tiles),
                dim,
                EXPERTS=experts,
                DIM=dim,
                HIDDEN=width,
                SLOTS=gate.shape[1],
                HEIGHT=height,
                COLUMNS=tile.columns,
                DEPTH=tile.depth,
                COLUMN_TILES=column_tiles,
                GROUP=GROUP,
                PRECISION=precision(grad.dtype),
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
    return grad_pre, weighed, parts.sum(1).view(gate.shape).to(gate.dtype)


@triton.jit(do_not_specialize=["tile_count", "inner"])
def hidden_grad_kernel(  # type: ignore[no-untyped-def]
    grad,
    down,
    pre,
    gate,
    order,
    tiles,
    grad_pre,
    weighed,
    parts,
    tile_count,
    inner,
    EXPERTS: tl.constexpr,
    DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLOTS: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of HEIGHT rows x COLUMNS hidden units."""
    tile, column_tile = place(tl.program_id(0), tile_count, COLUMN_TILES, GROUP)
    expert = tl.load(tiles + tile * 3)
    if expert >= EXPERTS:
        return
    end = tl.load(tiles + tile * 3 + 2)
    first = tl.load(tiles + tile * 3 + 1)
    row = first + tl.arange(0, HEIGHT)
    live = row < end
    slot = tl.load(order + tl.minimum(row, end - 1))
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    wide = (column < HIDDEN) | (HIDDEN % COLUMNS == 0)
    depth = tl.arange(0, DEPTH)

    grad_at = grad + (slot // SLOTS).to(tl.int64)[:, None] * DIM + depth[None, :]
    down_at = down + expert.to(tl.int64) * (DIM * HIDDEN) + column[None, :] + depth[:, None] * HIDDEN
    back = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    for start in span(0, inner, DEPTH):
        deep = (start + depth < DIM) | (DIM % DEPTH == 0)
        left = tl.load(grad_at + start, mask=deep[None, :], other=0.0)
        right = tl.load(down_at + start * HIDDEN, mask=deep[:, None] & wide[None, :], other=0.0)
        back = tl.dot(left, right, back, input_precision=PRECISION)

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
    tl.store(parts + slot * COLUMN_TILES + column_tile, part, mask=live)


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
