"""The readable backend: one expert after the other, no sort. Everything else is checked against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.moe.routing import Routing, RoutingContext, Rows

if TYPE_CHECKING:
    from zoo.moe.experts.base import Experts


def linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """x [N, D] sorted by expert, weight [R, F, D], counts [R] -> [N, F]; rows behind sum(counts) are zero."""
    pieces, start = [], 0
    for expert, count in enumerate(counts.tolist()):
        pieces.append(F.linear(x[start : start + count], weight[expert]))
        start += count
    return torch.cat([*pieces, x.new_zeros(len(x) - start, weight.shape[1])])


def mixture(x: Tensor, routing: Routing, experts: Experts, ctx: RoutingContext) -> Tensor:
    """x [T, D] -> [T, D_out]: sum over routed experts of gate times expert(x), one expert at a time."""
    y = x.new_zeros(len(x), experts.width)
    for expert in range(experts.count):
        token, slot = (routing.expert == expert).nonzero(as_tuple=True)
        gate = routing.gate[token, slot]
        counts = torch.zeros(experts.count, dtype=torch.int64, device=x.device)
        counts[expert] = len(token)
        out = experts(Rows(x=x[token], counts=counts, token=token, gate=gate), ctx)
        y = y.index_add(0, token, experts.weigh(out, gate).to(y.dtype))
    return y
