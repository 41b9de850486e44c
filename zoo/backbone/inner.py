"""MoE layers inside modules that answer with a tensor alone: attention that selects, adapted linear maps.

Running a block gives them the routing context and takes up their records, so that records stay an explicit output of
the block and recomputed activations leave none twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.backbone.context import BlockContext, Carry
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.moe.routing import RoutingContext


class InnerMoE(MoE):
    """An MoE layer that stands inside another module of its block.

    now    the routing context while the block runs, else None
    heard  what it leaves for the block's carry
    """

    now: RoutingContext | None = None
    heard: LayerRecord | None = None

    def context(self) -> RoutingContext:
        """The routing context of the running block. Raises RuntimeError where none runs."""
        if self.now is None:
            raise RuntimeError(f"{type(self).__name__}: called outside of its block")
        return self.now


def inside(block: nn.Module) -> list[InnerMoE]:
    """The inner MoE layers of a block, in the order of their records."""
    return [module for module in block.modules() if isinstance(module, InnerMoE)]


def run(
    block: nn.Module, inner: Sequence[InnerMoE], layer: int, x: Tensor, carry: Carry, ctx: BlockContext
) -> tuple[Tensor, Carry]:
    """A block whose inner MoE layers have the numbers `layer` and on; their records follow its own."""
    for i, module in enumerate(inner):
        noise = ctx.seed is not None and module.spec.properties().noise
        module.now, module.heard = ctx.router_context(layer + i, carry.values, noise), None
    try:
        x, carry = block(x, carry, ctx)
        for module in inner:
            if module.heard is None:
                raise RuntimeError(f"{type(module).__name__}: its block never called it")
            carry = carry.add(module.heard)
    finally:
        for module in inner:
            module.now = module.heard = None
    return x, carry
