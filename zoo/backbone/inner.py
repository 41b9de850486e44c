"""MoE layers inside modules that answer with a tensor alone: attention that selects, adapted linear maps.

Running a block gives them the routing context and takes up their records, so that records stay an explicit output of
the block and recomputed activations leave none twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.backbone.context import BlockContext, Carry
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats


class InnerMoE(MoE):
    """An MoE layer that stands inside another module of its block.

    now    the routing context while the block runs, else None
    heard  what it leaves for the block's carry; several records (of the maps beside which an adapter stands) are joined
    """

    now: RoutingContext | None
    heard: list[LayerRecord]

    def __init__(self, spec: MoESpec, dim: int) -> None:
        super().__init__(spec, dim)
        self.now, self.heard = None, []

    def context(self) -> RoutingContext:
        """The routing context of the running block. Raises RuntimeError where none runs."""
        if self.now is None:
            raise RuntimeError(f"{type(self).__name__}: called outside of its block")
        return self.now


def check_router(router: RouterSpec) -> None:
    """Raises ValueError("router...") where a router of inner MoE layers would read, or leave, what is another's."""
    if getattr(getattr(router, "gate", None), "carried", False):
        raise ValueError("router.gate: reads the MoE layer before; expected one that reads its own input alone")


def inside(block: nn.Module) -> list[InnerMoE]:
    """The inner MoE layers of a block, in the order of their records."""
    return [module for module in block.modules() if isinstance(module, InnerMoE)]


def run(
    block: nn.Module, inner: Sequence[InnerMoE], layer: int, x: Tensor, carry: Carry, ctx: BlockContext
) -> tuple[Tensor, Carry]:
    """A block whose inner MoE layers have the numbers `layer` and on; their records follow its own."""
    for i, module in enumerate(inner):
        noise = ctx.seed is not None and module.spec.properties().noise
        module.now, module.heard = ctx.router_context(layer + i, carry.values, noise), []
    try:
        x, carry = block(x, carry, ctx)
        for module in inner:
            if not module.heard:
                raise RuntimeError(f"{type(module).__name__}: its block never called it")
            carry = carry.add(joined(module.heard))
    finally:
        for module in inner:
            module.now, module.heard = None, []
    return x, carry


def joined(records: Sequence[LayerRecord]) -> LayerRecord:
    """One record of n records of the same tokens, row after row; every token counts 1 / n times, so that they weigh in
    balance as one layer."""
    if len(records) == 1:
        return records[0]
    routings, first = [record.routing for record in records], records[0]

    def cat(values: Sequence[Tensor | None]) -> Tensor | None:
        given = [value for value in values if value is not None]
        return torch.cat(given) if len(given) == len(values) else None

    names = ("expert", "gate", "raw", "scores", "mask", "shared", "chosen")
    routing = routings[0].replace(**{name: cat([getattr(routing, name) for routing in routings]) for name in names})
    ones = torch.ones(len(first.routing.mask), device=first.routing.mask.device)
    weight = torch.cat([ones if r.weight is None else r.weight for r in records]) / len(records)
    rows, length = first.shape
    return LayerRecord(
        routing, Stats(routing, first.stats.pool), (rows * len(records), length), cat([r.document for r in records]),
        cat([r.modality for r in records]), weight=weight, copies=len(records),
    )  # fmt: skip
