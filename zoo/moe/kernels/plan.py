"""Which tokens each expert serves, read on the host, in chunks that fit in cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 512  # rows worked on at once: few enough for their activations to stay in a core's cache
FEW = 64  # slots that are sorted faster in Python than by torch's operators


@dataclass(frozen=True)
class Chunk:
    """Rows of one or several experts.

    expert  ids of experts that have rows
    count   rows of each
    token   [n] int64 rows of x
    order   [n] int64 places in the flat [T * K] slots; ascending for each expert
    """

    expert: list[int]
    count: list[int]
    token: Tensor
    order: Tensor


@dataclass(frozen=True)
class Plan:
    """All chunks, in order of expert, so that every token's sum has a fixed order.

    chunks  the work
    widest  rows of the largest chunk
    rows    rows of all
    idle    experts without rows
    """

    chunks: tuple[Chunk, ...]
    widest: int
    rows: int
    idle: list[int]

    @classmethod
    def of(cls, expert: Tensor, routed: int) -> Plan:
        """expert [T, K] int64; ids of `routed` and above (null and empty slots) are left out. One stable sort."""
        order, token, counts = _sort(expert, routed)
        rows, groups = sum(counts), list(_groups(counts))
        sizes = [sum(counts[e] for e in group) for group in groups]
        chunks = tuple(
            Chunk(group, [counts[e] for e in group], t, o)
            for group, t, o in zip(groups, token.split(sizes), order.split(sizes), strict=True)
        )
        return cls(chunks, max(sizes, default=0), rows, [e for e, count in enumerate(counts) if not count])


def _sort(expert: Tensor, routed: int) -> tuple[Tensor, Tensor, list[int]]:
    """Places of the slots of routed experts, by expert and then ascending; their tokens; how many each expert has."""
    slots = expert.shape[1]
    if expert.numel() <= FEW:
        ids = expert.flatten().tolist()
        counts = [0] * routed
        for e in ids:
            if e < routed:
                counts[e] += 1
        places = sorted((i for i, e in enumerate(ids) if e < routed), key=ids.__getitem__)
        order, token = torch.tensor([places, [place // slots for place in places]], dtype=torch.int64)
        return order, token, counts
    flat = expert.flatten().clamp(max=routed)
    counts = torch.bincount(flat, minlength=routed + 1)[:routed].tolist()
    order = flat.argsort(stable=True)[: sum(counts)]
    return order, order.div(slots, rounding_mode="floor"), counts


def _groups(counts: list[int]) -> Iterator[list[int]]:
    """Experts that have rows, cut so that a group holds at most CHUNK rows or one expert."""
    group: list[int] = []
    held = 0
    for expert, count in enumerate(counts):
        if group and held + count > CHUNK:
            yield group
            group, held = [], 0
        if count:
            group.append(expert)
            held += count
    if group:
        yield group
