"""Sequences in a flat batch: numbers, sums and ranks inside them, all without reading from the device."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.moe.routing import RoutingContext


def sequences(ctx: RoutingContext) -> Tensor:
    """[T] int64, the number of each token's sequence (its row and document), below T but not without gaps."""
    rows, length = ctx.shape
    row = torch.arange(rows, device=ctx.mask.device).repeat_interleave(length)
    if ctx.document is None:
        return row
    ordered, order = ctx.document.view(rows, length).sort(dim=1, stable=True)
    new = ordered != torch.cat([ordered[:, :1], ordered], dim=1)[:, :length]
    place = torch.empty_like(order).scatter(1, order, new.cumsum(1))
    return row * length + place.flatten()


def sums(values: Tensor, sequence: Tensor) -> Tensor:
    """values [T, ...], sequence [T] -> [T, ...]: for each token the sum over its sequence."""
    return torch.zeros_like(values).index_add(0, sequence, values).index_select(0, sequence)


def ranks(scores: Tensor, sequence: Tensor) -> Tensor:
    """scores [T, E] -> [T, E] int64: the place of each token in its sequence by each column, 0 for the greatest; ties
    go to the earlier token."""
    order = scores.argsort(dim=0, descending=True, stable=True)
    order = order.gather(0, sequence[order].argsort(dim=0, stable=True))
    sizes = torch.zeros_like(sequence).scatter_add(0, sequence, torch.ones_like(sequence))
    start = sizes.cumsum(0) - sizes
    place = torch.arange(len(scores), device=scores.device)[:, None] - start[sequence[order]]
    return torch.empty_like(order).scatter(0, order, place)
