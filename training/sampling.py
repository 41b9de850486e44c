"""Which source a micro-batch comes from and which rows it takes: pure functions of its place in the run."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from training.seeds import derive

GOLDEN = 0.6180339887498949
CHUNK = 65536


def picks(seed: int, weights: Sequence[float], steps: np.ndarray, slots: int) -> np.ndarray:
    """[steps, slots] the source of every micro-batch of these steps, over all ranks.

    A step's slots are spread evenly over the weights (systematic sampling) from an offset that moves by the golden
    ratio from step to step, so every source comes as often as its weight says in each step and over any few steps.
    """
    edges = np.cumsum(np.asarray(weights, dtype=np.float64))
    offset = (derive(seed, "mixture") / 2**40 + steps.astype(np.float64) * GOLDEN) % 1.0
    place = (np.arange(slots) + offset[:, None]) / slots
    return np.searchsorted(edges[:-1] / edges[-1], place, side="right")


def counts_before(seed: int, weights: Sequence[float], step: int, slots: int) -> np.ndarray:
    """[sources] how many micro-batches each source gave in the steps before this one."""
    counts = np.zeros(len(weights), dtype=np.int64)
    for start in range(0, step, CHUNK):
        chosen = picks(seed, weights, np.arange(start, min(start + CHUNK, step)), slots)
        counts += np.bincount(chosen.ravel(), minlength=len(weights))
    return counts


@functools.lru_cache(maxsize=64)
def permutation(seed: int, source: str, epoch: int, size: int) -> np.ndarray:
    """The order of a source's examples in one epoch."""
    return np.random.Generator(np.random.PCG64(derive(seed, "order", source, epoch))).permutation(size)


def rows(seed: int, source: str, size: int, first: int, count: int) -> Iterator[int]:
    """Examples first .. first + count - 1 of the endless row of a source's epochs."""
    for place in range(first, first + count):
        epoch, index = divmod(place, size)
        yield int(permutation(seed, source, epoch, size)[index])
