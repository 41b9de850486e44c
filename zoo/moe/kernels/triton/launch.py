"""How a kernel over tiles of the sorted rows is launched."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from zoo.moe.kernels.triton.plan import Plan
from zoo.moe.kernels.triton.settings import Tile
from zoo.moe.kernels.triton.tile import on, precision


def launch(
    kernel: Any,
    rows: Plan,
    tile: Tile,
    height: int,
    inner: int,
    width: int,
    *tensors: Tensor | None,
    **constants: int | bool,
) -> None:
    """Runs kernel(order, tiles, number of tiles, inner, *tensors, ...) over tiles of height rows x tile.columns of
    `width` columns, where there are rows at all; the first tensor says where and how exactly."""
    first = tensors[0]
    assert first is not None
    if not len(rows.order):
        return
    with on(first):
        kernel[(len(rows.tiles) * triton.cdiv(width, tile.columns),)](
            rows.order,
            rows.tiles,
            len(rows.tiles),
            inner,
            *tensors,
            **constants,
            HEIGHT=height,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            PRECISION=precision(first.dtype),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
