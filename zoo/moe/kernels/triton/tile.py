"""What the kernels share: where a program stands, the product of its tile, and on which device it is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

# Row tiles that run side by side before the next block of columns: they share an expert's weights in the L2 cache.
GROUP = tl.constexpr(8)


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; this makes it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def precision(dtype: torch.dtype) -> str:
    """float32 products obey torch.set_float32_matmul_precision, as torch's own do."""
    exact = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact else "tf32"


def _interpreted_span(start: int | tl.tensor, end: tl.tensor, step: int) -> range:
    """The interpreter holds scalars as arrays of one element, which numpy 2.4 does not take for integers."""
    first, last = (bound if isinstance(bound, int) else bound.handle.data.item() for bound in (start, end))
    return range(first, last, int(step))


# The range of a loop whose bounds are known at run time; the compiler needs its own class to pipeline it.
span = _interpreted_span if triton.knobs.runtime.interpret else tl.range


@triton.jit
def place(tiles, tile_count, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where this program stands: (expert, first row, end of the expert's rows, column tile, columns [COLUMNS], which of
    them lie within WIDTH); see Plan.tiles."""
    group: tl.constexpr = GROUP * ((WIDTH + COLUMNS - 1) // COLUMNS)
    start = (tl.program_id(0) // group) * GROUP
    size = tl.minimum(tile_count - start, GROUP)
    inside = tl.program_id(0) % group
    entry = tiles + (start + inside % size) * 3
    column = inside // size * COLUMNS + tl.arange(0, COLUMNS)
    wide = (column < WIDTH) | (WIDTH % COLUMNS == 0)
    return tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), inside // size, column, wide


@triton.jit
def product(  # type: ignore[no-untyped-def]
    left, right, wide, inner, STRIDE: tl.constexpr, INNER: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr
):
    """left [HEIGHT, DEPTH] and right [DEPTH, COLUMNS] point at the first step of a contraction over INNER, in which
    they advance by 1 and by STRIDE -> [HEIGHT, COLUMNS] float32; columns that are not `wide` are not read.

    inner equals INNER, but is not known to the compiler: some constant numbers of steps it unrolls, for ten seconds.
    """
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((left.shape[0], right.shape[1]), tl.float32)
    for start in span(0, inner, DEPTH):
        deep = (start + depth < INNER) | (INNER % DEPTH == 0)
        a = tl.load(left + start, mask=deep[None, :], other=0.0)
        b = tl.load(right + start * STRIDE, mask=deep[:, None] & wide[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def halves(block):  # type: ignore[no-untyped-def]
    """The left and the right half of a block's columns."""
    folded = tl.reshape(block, (block.shape[0], 2, block.shape[1] // 2))
    return tl.split(tl.permute(folded, (0, 2, 1)))
