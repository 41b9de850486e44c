"""h = silu(gate_e x) * up_e x for rows gathered by sorted slot: gather, two products and activation in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from zoo.moe.kernels.triton.launch import launch
from zoo.moe.kernels.triton.plan import Plan
from zoo.moe.kernels.triton.settings import Tile
from zoo.moe.kernels.triton.tile import place, span


def up(
    x: Tensor, gate_up: Tensor, rows: Plan, slots: int, height: int, tile: Tile, *, hidden: bool, preact: bool
) -> tuple[Tensor, Tensor]:
    """x [T, D] -> h [N, F] where `hidden` and the preactivations [N, 2F] where `preact`, each empty otherwise; rows
    sorted by expert, those behind the last expert's unwritten."""
    experts, width, dim = gate_up.shape
    width //= 2
    count = len(rows.order)
    h = x.new_empty(count if hidden else 0, width)
    pre = x.new_empty(count if preact else 0, 2 * width)
    constants = {"EXPERTS": experts, "DIM": dim, "HIDDEN": width, "SLOTS": slots}
    flags = {"WRITE_HIDDEN": hidden, "WRITE_PREACT": preact}
    launch(up_kernel, rows, tile, height, dim, width, x, gate_up, h, pre, **constants, **flags)
    return h, pre


@triton.jit(do_not_specialize=["tile_count", "inner"])
def up_kernel(  # type: ignore[no-untyped-def]
    order,
    tiles,
    tile_count,
    inner,
    x,
    gate_up,
    h,
    pre,
    EXPERTS: tl.constexpr,
    DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLOTS: tl.constexpr,
    WRITE_HIDDEN: tl.constexpr,
    WRITE_PREACT: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of HEIGHT rows x COLUMNS hidden units. Rows behind the expert's last are computed, never stored.

    Two products over the same rows, which `product` would read twice; for `inner` see there.
    """
    expert, first, end, _, column, wide = place(tiles, tile_count, HIDDEN, COLUMNS)
    if expert >= EXPERTS:
        return
    row = first + tl.arange(0, HEIGHT)
    live = row < end
    token = tl.load(order + row, mask=live, other=0) // SLOTS
    depth = tl.arange(0, DEPTH)

    x_at = x + token.to(tl.int64)[:, None] * DIM + depth[None, :]
    gate_at = gate_up + expert.to(tl.int64) * (2 * HIDDEN * DIM) + column[None, :] * DIM + depth[:, None]
    up_at = gate_at + HIDDEN * DIM
    gate = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    up = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    for start in span(0, inner, DEPTH):
        deep = (start + depth < DIM) | (DIM % DEPTH == 0)
        rows = tl.load(x_at + start, mask=deep[None, :], other=0.0)
        mask = deep[:, None] & wide[None, :]
        gate = tl.dot(rows, tl.load(gate_at + start, mask=mask, other=0.0), gate, input_precision=PRECISION)
        up = tl.dot(rows, tl.load(up_at + start, mask=mask, other=0.0), up, input_precision=PRECISION)

    stored = live[:, None] & wide[None, :]
    at = tl.arange(0, HEIGHT)[:, None] * HIDDEN + column[None, :]
    if WRITE_HIDDEN:
        value = gate * tl.sigmoid(gate) * up
        tl.store(h + first.to(tl.int64) * HIDDEN + at, value.to(h.dtype.element_ty), mask=stored)
    if WRITE_PREACT:
        pre_at = pre + first.to(tl.int64) * (2 * HIDDEN) + (at + tl.arange(0, HEIGHT)[:, None] * HIDDEN)
        tl.store(pre_at, gate.to(pre.dtype.element_ty), mask=stored)
        tl.store(pre_at + HIDDEN, up.to(pre.dtype.element_ty), mask=stored)
