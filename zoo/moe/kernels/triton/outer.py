"""Weight gradients: per expert, the sum over its rows of left outer right, right being gathered by token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from zoo.moe.kernels.triton.plan import Plan
from zoo.moe.kernels.triton.settings import Outer
from zoo.moe.kernels.triton.tile import on, precision, span


def outer(left: Tensor, right: Tensor, rows: Plan, slots: int, tile: Outer, *, transposed: bool) -> Tensor:
    """left [N, L] sorted, right [T, D] -> [R, L, D], [R, D, L] where transposed; zero for experts without rows."""
    experts, height, width = len(rows.offsets) - 1, left.shape[1], right.shape[1]
    out = left.new_empty(experts, *((width, height) if transposed else (height, width)))
    right_tiles = triton.cdiv(width, tile.right)
    with on(left):
        outer_kernel[(triton.cdiv(height, tile.left) * right_tiles, experts)](
            left,
            right,
            rows.order,
            rows.offsets,
            out,
            LEFT=height,
            RIGHT=width,
            SLOTS=slots,
            LEFT_STRIDE=1 if transposed else width,
            RIGHT_STRIDE=height if transposed else 1,
            LEFTS=tile.left,
            RIGHTS=tile.right,
            DEPTH=tile.depth,
            RIGHT_TILES=right_tiles,
            PRECISION=precision(left.dtype),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


@triton.jit
def outer_kernel(  # type: ignore[no-untyped-def]
    left,
    right,
    order,
    offsets,
    out,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SLOTS: tl.constexpr,
    LEFT_STRIDE: tl.constexpr,
    RIGHT_STRIDE: tl.constexpr,
    LEFTS: tl.constexpr,
    RIGHTS: tl.constexpr,
    DEPTH: tl.constexpr,
    RIGHT_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One expert's tile of LEFTS x RIGHTS weights; the expert's rows are contracted DEPTH at a time."""
    expert = tl.program_id(1)
    i = tl.program_id(0) // RIGHT_TILES * LEFTS + tl.arange(0, LEFTS)
    j = tl.program_id(0) % RIGHT_TILES * RIGHTS + tl.arange(0, RIGHTS)
    tall = (i < LEFT) | (LEFT % LEFTS == 0)
    wide = (j < RIGHT) | (RIGHT % RIGHTS == 0)
    end = tl.load(offsets + expert + 1)
    total = tl.zeros((LEFTS, RIGHTS), tl.float32)
    for start in span(tl.load(offsets + expert), end, DEPTH):
        row = start + tl.arange(0, DEPTH)
        live = row < end
        token = tl.load(order + row, mask=live, other=0) // SLOTS
        left_at = left + row.to(tl.int64)[None, :] * LEFT + i[:, None]
        right_at = right + token.to(tl.int64)[:, None] * RIGHT + j[None, :]
        a = tl.load(left_at, mask=tall[:, None] & live[None, :], other=0.0)
        b = tl.load(right_at, mask=live[:, None] & wide[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    at = out + expert.to(tl.int64) * (LEFT * RIGHT) + i[:, None] * LEFT_STRIDE + j[None, :] * RIGHT_STRIDE
    tl.store(at, total.to(out.dtype.element_ty), mask=tall[:, None] & wide[None, :])
