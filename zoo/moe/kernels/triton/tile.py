"""What the kernels share: where a program stands, and on which device it is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

# Row tiles that run side by side before the next block of columns: they share an expert's weights in the L2 cache.
GROUP = 8


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
def place(program, tile_count, COLUMN_TILES: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """(row tile, column tile) of a program."""
    width: tl.constexpr = GROUP * COLUMN_TILES
    start = (program // width) * GROUP
    size = tl.minimum(tile_count - start, GROUP)
    inside = program % width
    return start + inside % size, inside // size


@triton.jit
def halves(block):  # type: ignore[no-untyped-def]
    """The left and the right half of a block's columns."""
    folded = tl.reshape(block, (block.shape[0], 2, block.shape[1] // 2))
    return tl.split(tl.permute(folded, (0, 2, 1)))
