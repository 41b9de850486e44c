"""Modules that a model's change of precision leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class Precise(nn.Module):
    """A module that follows its model to another device, and to a wider number format, but never to a narrower one:
    routers, transforms and quantisers are wrong in bfloat16."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(never_narrower(fn), recurse)
        return self


def never_narrower(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What a model does to its tensors (`.to`, `.half` ...), without narrowing their number format."""

    def keep(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype.itemsize >= tensor.dtype.itemsize else tensor.to(moved.device)

    return keep
