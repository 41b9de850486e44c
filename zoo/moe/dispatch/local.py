"""Local dispatch: one stable sort by expert, one gather, one scatter-add."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.moe.dispatch.base import Dispatch, DispatchSpec
from zoo.moe.pool import Pool
from zoo.moe.routing import Routing, Rows


@dataclass(frozen=True, kw_only=True)
class LocalSpec(DispatchSpec):
    """All experts are on this device. No keys."""

    def build(self, pool: Pool) -> Dispatch:
        return LocalDispatch(pool)


class LocalDispatch:
    """See LocalSpec."""

    local = True

    def __init__(self, pool: Pool) -> None:
        self.routed = pool.routed

    def gather(self, x: Tensor, routing: Routing) -> Rows:
        slots = routing.expert.shape[1]
        expert = routing.expert.flatten().clamp(max=self.routed)  # null and empty slots sort last
        order = expert.argsort(stable=True)
        counts = torch.zeros(self.routed + 1, dtype=torch.int64, device=x.device)
        counts = counts.scatter_add(0, expert, torch.ones_like(expert))[: self.routed]
        # On a CPU the number of rows may be read, so that null and empty slots are never gathered; on a GPU and when
        # compiling that would be a synchronisation, and the tail is carried along and comes out as zero.
        if not x.is_cuda and not torch.compiler.is_compiling():
            order = order[: int(counts.sum())]
        token = order // slots
        return Rows(x=x.index_select(0, token), counts=counts, token=token, gate=routing.gate.flatten()[order])

    def combine(self, out: Tensor, rows: Rows, tokens: int) -> Tensor:
        return out.new_zeros(tokens, out.shape[1]).index_add(0, rows.token, out)
