"""Which kernels serve a shape, and the tiles the fused ones work in.

The figures come from arithmetic and from what the compiler reports for sm_90 (registers, shared memory), not from
timings: measure with `benchmarks/moe_layer.py` on the GPU at hand and change the constants here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

# Up to so many slots a call counts as decoding: one program sorts them, and the kernels are bound by reading weights.
SMALL_ROWS = 512

# Bytes of memory traffic that cost as much time as one operation of a bfloat16 GEMM: 6.5e14 operations per second
# that a grouped GEMM sustains, over 4.0e12 bytes per second that a copy does (H200).
OPERATIONS_PER_BYTE = 160
# How much longer than torch's CUTLASS kernels the Triton GEMMs are taken to need.
GEMM_DEFICIT = 0.15


def choose(rows: int, experts: int, dim: int, hidden: int, dtype: torch.dtype) -> Literal["fused", "grouped_mm"]:
    """The GPU path for `rows` = T * K slots on `experts` experts of shape (dim, hidden).

    fused where torch's grouped_mm is no fast kernel: dtypes other than bfloat16 (it then loops over the experts and
    reads the offsets back to the host), widths that are not multiples of 8 (16-byte rows);
    fused for decoding, and where experts hold fewer rows than half a tile;
    else fused where the traffic it saves outweighs its slower GEMM. Around the products, the separate operators move
    gathered rows, scaled rows and the combined sum (about 5 * dim values per slot) and the activation (3 * hidden),
    against 6 * dim * hidden operations.
    """
    if dtype != torch.bfloat16 or dim % 8 or hidden % 8:
        return "fused"
    if rows <= max(SMALL_ROWS, 64 * experts):
        return "fused"
    traffic = 2 * (5 * dim + 3 * hidden) * OPERATIONS_PER_BYTE
    return "fused" if traffic > GEMM_DEFICIT * 6 * dim * hidden else "grouped_mm"


# Bytes of shared memory that the largest tiles need (Hopper: 227 KiB, Ampere: 163 KiB).
SHARED_MEMORY = 192 * 1024


@dataclass(frozen=True)
class Tile:
    """A program's share of a product: output columns, steps of the contraction, warps, pipeline stages."""

    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Outer:
    """The same for weight gradients, where rows are contracted: left x right outputs, `depth` rows at a time."""

    left: int
    right: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiling:
    """The tiles of one call. All kernels cut the sorted rows into the same `rows`, so one plan serves them all."""

    rows: int
    up: Tile
    scatter: Tile
    hidden: Tile
    outer: Outer


HALF = {
    16: Tiling(16, Tile(64, 64, 4, 5), Tile(32, 128, 4, 5), Tile(64, 64, 4, 5), Outer(128, 128, 32, 8, 4)),
    64: Tiling(64, Tile(128, 64, 8, 4), Tile(128, 64, 4, 4), Tile(128, 64, 4, 4), Outer(128, 128, 64, 8, 5)),
    128: Tiling(128, Tile(128, 64, 8, 4), Tile(256, 64, 8, 4), Tile(256, 64, 8, 4), Outer(128, 256, 64, 8, 5)),
}
SINGLE = {
    16: Tiling(16, Tile(32, 32, 4, 4), Tile(32, 64, 4, 4), Tile(32, 32, 4, 4), Outer(64, 64, 16, 4, 3)),
    64: Tiling(64, Tile(64, 32, 8, 3), Tile(64, 32, 4, 3), Tile(64, 32, 8, 3), Outer(64, 64, 32, 4, 3)),
}


def tiling(rows: int, experts: int, dtype: torch.dtype) -> Tiling:
    """Tiles no taller than experts are full on average: rows of a tile that no token fills are computed in vain."""
    table = HALF if dtype == torch.bfloat16 else SINGLE
    mean = rows // experts
    for height in table:
        if mean <= height:
            return table[height]
    return table[max(table)]
