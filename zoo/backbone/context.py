"""What blocks are given, and what they hand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoo.backbone.cache import Cache
from zoo.backbone.mask import Visible
from zoo.backbone.rope import Rotation
from zoo.moe.record import LayerRecord
from zoo.moe.routing import RoutingContext


@dataclass(frozen=True, kw_only=True)
class BlockContext:
    """The same for all blocks of a forward pass.

    routing  what routers may look at; blocks set layer, carry and generator
    rope     by number of turned dimensions of a head: the turning by these tokens' positions
    visible  by window: what these tokens see
    cond     [B, C] conditioning of the rows, or None
    cache    key/value cache, or None
    seed     source of the routers' noise; a layer draws from its own generator, so recomputation draws the same
    """

    routing: RoutingContext
    rope: Mapping[int, Rotation]
    visible: Mapping[int | None, Visible]
    cond: Tensor | None = None
    cache: Cache | None = None
    seed: int | None = None

    def router_context(self, layer: int, carry: Mapping[str, Tensor], noise: bool) -> RoutingContext:
        """The routing context of one MoE layer."""
        generator = None
        if noise and self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + layer)
        return self.routing.replace(layer=layer, carry=carry, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Carry:
    """What travels over depth, an explicit input and output of every block.

    values   name -> tensor: recurrent state, previous logits, a route decided once, a shortcut's source
    records  what the MoE layers so far left behind
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    records: tuple[LayerRecord, ...] = ()

    def add(self, record: LayerRecord) -> Carry:
        """With a layer's record appended and its routing's carry merged."""
        handed = record.routing.carry
        return Carry(values={**self.values, **handed} if handed else self.values, records=(*self.records, record))
