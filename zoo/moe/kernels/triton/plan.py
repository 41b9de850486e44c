"""Which rows a program works on: slots sorted by expert and cut into tiles, all on the device.

The grid must be known without asking the device how many rows each expert has, so there are as many tiles as the
worst routing needs, and those that are not needed name no expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.moe.kernels.triton.settings import SMALL_ROWS
from zoo.moe.kernels.triton.tile import on


class Plan(NamedTuple):
    """order [T*K] int32: slots t * K + k sorted by expert, skipped ones last; offsets [R+1] int32: where an expert's
    rows begin; tiles [M, 3] int32: expert (R for none), first row, end of the expert's rows."""

    order: Tensor
    offsets: Tensor
    tiles: Tensor


def plan(expert: Tensor, experts: int, height: int) -> Plan:
    """expert [T, K] -> the plan for tiles of `height` rows."""
    return Plan(*torch.ops.moezoo.tile_plan(expert, experts, height))


def tile_bound(rows: int, experts: int, height: int) -> int:
    """Most tiles that `rows` rows on at most min(rows, experts) experts can need."""
    used = torch.sym_min(rows, experts)
    return (rows + used * (height - 1)) // height


@torch.library.custom_op("moezoo::tile_plan", mutates_args=())
def _tile_plan(expert: Tensor, experts: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    if 0 < expert.numel() <= SMALL_ROWS:
        return _plan_small(expert, experts, height)
    return _plan_large(expert, experts, height)


@_tile_plan.register_fake
def _unwritten(expert: Tensor, experts: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of a plan, with no values yet."""
    rows = expert.shape[0] * expert.shape[1]
    bound = tile_bound(rows, experts, height)
    shapes: tuple[tuple[int, ...], ...] = ((rows,), (experts + 1,), (bound, 3))
    order, offsets, tiles = (expert.new_empty(shape, dtype=torch.int32) for shape in shapes)
    return order, offsets, tiles


def _plan_large(expert: Tensor, experts: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """Torch operators: a radix sort of many rows is theirs to do."""
    ranked, order = expert.flatten().clamp(max=experts).to(torch.int32).sort(stable=True)
    ids = torch.arange(experts + 1, dtype=torch.int32, device=expert.device)
    offsets = torch.searchsorted(ranked, ids, out_int32=True)
    tiles_of = (offsets.diff() + (height - 1)) // height
    ends = tiles_of.cumsum(0, dtype=torch.int32)
    bound = tile_bound(expert.numel(), experts, height)
    tile = torch.arange(bound, dtype=torch.int32, device=expert.device)
    owner = torch.searchsorted(ends, tile, right=True, out_int32=True)
    known = owner.clamp(max=experts - 1)
    nth = tile - (ends - tiles_of).index_select(0, known)
    first = offsets.index_select(0, known) + nth * height
    return order.to(torch.int32), offsets, torch.stack([owner, first, offsets.index_select(0, known + 1)], dim=1)


def _plan_small(expert: Tensor, experts: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """One program instead of a dozen launches, each of which would take longer than its work."""
    expert = expert.contiguous()
    order, offsets, tiles = _unwritten(expert, experts, height)
    rows, bound = len(order), len(tiles)
    with on(expert):
        plan_kernel[(1,)](
            expert,
            order,
            offsets,
            tiles,
            rows,
            bound,
            EXPERTS=experts,
            HEIGHT=height,
            ROWS=max(32, triton.next_power_of_2(rows)),
            BINS=max(128, triton.next_power_of_2(experts + 1)),
            TILES=triton.next_power_of_2(bound),
            num_warps=4,
        )
    return order, offsets, tiles


@triton.jit(do_not_specialize=["rows", "bound"])
def plan_kernel(  # type: ignore[no-untyped-def]
    expert,
    order,
    offsets,
    tiles,
    rows,
    bound,
    EXPERTS: tl.constexpr,
    HEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BINS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Sorts up to ROWS slots by (expert, slot), counts them and writes the tiles. BINS > EXPERTS."""
    slot = tl.arange(0, ROWS)
    owner = tl.load(expert + slot, mask=slot < rows, other=EXPERTS)
    owner = tl.minimum(owner, EXPERTS).to(tl.int32)
    ranked = tl.sort(owner * ROWS + slot)
    tl.store(order + slot, ranked % ROWS, mask=slot < rows)

    ids = tl.arange(0, BINS)
    count = tl.where(ids < EXPERTS, tl.histogram(owner, BINS), 0)
    end = tl.cumsum(count, 0)
    tl.store(offsets + ids, end - count, mask=ids <= EXPERTS)

    needed = (count + HEIGHT - 1) // HEIGHT
    first = tl.cumsum(needed, 0) - needed
    for nth in range((ROWS + HEIGHT - 1) // HEIGHT):
        entry = tiles + (first + nth) * 3
        real = nth < needed
        tl.store(entry, ids, mask=real)
        tl.store(entry + 1, end - count + nth * HEIGHT, mask=real)
        tl.store(entry + 2, end, mask=real)
    tile = tl.arange(0, TILES)
    tl.store(tiles + tile * 3, EXPERTS, mask=(tile >= tl.sum(needed, 0)) & (tile < bound))
