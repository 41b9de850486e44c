"""Sums and lists over data-parallel ranks; nothing to do in a single process."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def several() -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def reduce(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in place."""
    if several():
        dist.all_reduce(value)
    return value


def gather(value: T) -> list[T]:
    """Each rank's plain value, in the order of ranks."""
    if not several():
        return [value]
    held: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(held, value)
    return [v for v in held if v is not None]


def number() -> tuple[int, int]:
    """(this rank, number of ranks)."""
    return (dist.get_rank(), dist.get_world_size()) if several() else (0, 1)
