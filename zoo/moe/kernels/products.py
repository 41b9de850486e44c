"""Products of each expert's rows on a CPU, one library call per expert, into buffers that are given.

The way back through a wide matrix is cut: with 48 to 160 rows and 1024 or more outputs, MKL's float32 product runs at
100 to 115 GFLOP/s on an AVX-512 core that does 160 with more rows; in sums of 512 inputs it does 110 to 140.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.moe.kernels.plan import Chunk

MIDDLE = range(48, 192)  # rows
DEEP, WIDE = 512, 1024  # a cut product sums over so many inputs at a time, where it has so many outputs or more


def linear(rows: Tensor, weight: Tensor, chunk: Chunk, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """out [n, O] = rows [n, I] times weight [R, O, I] of each row's expert, transposed, and its bias [R, O]."""
    weight = weight.mT
    for e, left, right in zip(chunk.expert, rows.split(chunk.count), out.split(chunk.count), strict=True):
        if bias is None:
            torch.mm(left, weight[e], out=right)
        else:
            torch.addmm(bias[e], left, weight[e], out=right)
    return out


def back(rows: Tensor, weight: Tensor, chunk: Chunk, out: Tensor) -> Tensor:
    """out [n, I] = rows [n, O] times weight [R, O, I] of each row's expert: the way back through `linear`."""
    deep, wide = weight.shape[1:]
    cut = deep > DEEP and wide >= WIDE and rows.dtype == torch.float32
    for e, left, right in zip(chunk.expert, rows.split(chunk.count), out.split(chunk.count), strict=True):
        if cut and len(left) in MIDDLE:
            first, *rest = zip(left.split(DEEP, 1), weight[e].split(DEEP), strict=True)
            torch.mm(*first, out=right)
            for pair in rest:
                right.addmm_(*pair)
        else:
            torch.mm(left, weight[e], out=right)
    return out


def outer(left: Tensor, right: Tensor, chunk: Chunk, out: Tensor) -> None:
    """out[e] [A, B] = the sum over expert e's rows of left [n, A] outer right [n, B]."""
    for e, a, b in zip(chunk.expert, left.split(chunk.count), right.split(chunk.count), strict=True):
        torch.mm(a.t(), b, out=out[e])
