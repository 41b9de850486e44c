"""Rows sorted by expert times their expert's matrix, times a gate, back in the order of the slots; then the sum over
each token's slots. Two kernels, so that the sum has a fixed order and needs no atomics."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from zoo.moe.kernels.triton.launch import launch
from zoo.moe.kernels.triton.plan import Plan
from zoo.moe.kernels.triton.settings import Tile
from zoo.moe.kernels.triton.tile import on, place, product


def scatter_sum(
    rows: Tensor,
    weight: Tensor,
    gate: Tensor | None,
    expert: Tensor,
    plan: Plan,
    height: int,
    tile: Tile,
    *,
    transposed: bool,
) -> Tensor:
    """rows [N, I] sorted, weight [R, O, I] ([R, I, O] where transposed), gate [T, K] or None -> [T, O]."""
    depth = rows.shape[1]
    width = weight.shape[2] if transposed else weight.shape[1]
    spread = rows.new_empty(len(rows), width)
    constants = {"EXPERTS": weight.shape[0], "INNER": depth, "WIDTH": width}
    strides = {"COLUMN_STRIDE": 1 if transposed else depth, "INNER_STRIDE": width if transposed else 1}
    launch(scatter_kernel, plan, tile, height, depth, width, rows, weight, gate, spread, **constants, **strides)
    return _sum_slots(spread, expert, weight.shape[0])


def _sum_slots(spread: Tensor, expert: Tensor, experts: int) -> Tensor:
    """spread [T*K, O], expert [T, K] -> [T, O]; slots without an expert were never written and are never read."""
    tokens, slots = expert.shape
    width = spread.shape[1]
    out = spread.new_empty(tokens, width)
    block = min(1024, triton.next_power_of_2(width))
    if not slots:
        return out.zero_()
    if tokens:
        with on(spread):
            sum_kernel[(tokens, triton.cdiv(width, block))](
                spread, expert, out, EXPERTS=experts, SLOTS=slots, WIDTH=width, BLOCK=block, num_warps=4
            )
    return out


@triton.jit(do_not_specialize=["tile_count", "inner"])
def scatter_kernel(  # type: ignore[no-untyped-def]
    order,
    tiles,
    tile_count,
    inner,
    rows,
    weight,
    gate,
    spread,
    EXPERTS: tl.constexpr,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMN_STRIDE: tl.constexpr,
    INNER_STRIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of HEIGHT rows x COLUMNS outputs, stored where the rows' slots are."""
    expert, first, end, _, column, wide = place(tiles, tile_count, WIDTH, COLUMNS)
    if expert >= EXPERTS:
        return
    row = first + tl.arange(0, HEIGHT)
    live = row < end
    row = tl.minimum(row, end - 1)
    depth = tl.arange(0, DEPTH)

    row_at = rows + row.to(tl.int64)[:, None] * INNER + depth[None, :]
    weight_at = weight + expert.to(tl.int64) * (INNER * WIDTH)
    weight_at = weight_at + column[None, :] * COLUMN_STRIDE + depth[:, None] * INNER_STRIDE
    total = product(row_at, weight_at, wide, inner, INNER_STRIDE, INNER, DEPTH, PRECISION)

    slot = tl.load(order + row)
    if gate is not None:
        total *= tl.load(gate + slot).to(tl.float32)[:, None]
    at = slot.to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(spread + at, total.to(spread.dtype.element_ty), mask=live[:, None] & wide[None, :])


@triton.jit
def sum_kernel(  # type: ignore[no-untyped-def]
    spread, expert, out, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """One token: its slots' rows are added in order, in float32."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wide = column < WIDTH
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(SLOTS):
        slot = token * SLOTS + k
        full = tl.load(expert + slot) < EXPERTS
        total += tl.load(spread + slot * WIDTH + column, mask=wide & full, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + column, total.to(out.dtype.element_ty), mask=wide)
