"""Active operations per token: as the description counts them, and with the experts that tokens really used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.backbone.attention.selective import SelectiveSpec
from zoo.backbone.blocks.base import BlockSpec
from zoo.backbone.blocks.double_gating import DoubleGatingSpec
from zoo.backbone.blocks.routed_attention import RoutedAttentionSpec
from zoo.backbone.trunk import BackboneSpec
from zoo.models.unified import UnifiedSpec
from zoo.moe.spec import MoESpec

BACKWARD = 2.0  # operations of a backward pass, in forward passes


@dataclass(frozen=True)
class Choice:
    """What one MoE layer lets a token choose.

    stated  routed experts that a token uses by the router's own count, at even load over the pool
    each    operations of one of them for a token
    """

    stated: float
    each: float

    @classmethod
    def of(cls, layer: MoESpec, dim: int, more: float = 0.0) -> Choice:
        """Of a layer of width `dim` whose experts each need `more` operations outside their own description."""
        stated = layer.router.mean_k(layer.pool) * layer.routed / layer.pool.experts
        return cls(stated, layer.experts.cost(dim).flops + more)


def choices(part: Any, dim: int, keys: float) -> Iterator[Choice]:
    """The MoE layers of a description in their order, repeated ones as often as they are repeated, for tokens that see
    `keys` keys."""
    if isinstance(part, MoESpec):
        yield Choice.of(part, dim)
    elif isinstance(part, RoutedAttentionSpec):
        inner = part.heads * part.size(dim)
        yield Choice.of(part.layer(inner), dim, 4 * inner * (keys if part.window is None else min(keys, part.window)))
    elif isinstance(part, SelectiveSpec):
        size = part.rotary(dim)
        layer = part.layer(size)
        yield Choice.of(layer, dim, 4 * size * keys * layer.router.mean_k(layer.pool) / part.heads)
    elif isinstance(part, BackboneSpec):
        adapter = part.adapter
        maps = part.maps() if adapter is not None else []
        for index, block in enumerate(layers.block for layers in part.layers for _ in range(layers.repeat)):
            yield from choices(block, dim, keys)
            if adapter is not None and adapter.stands(maps[index], index, part.depth):
                yield Choice(0.0, 0.0)  # what stands beside the block's maps counts as stated
    elif isinstance(part, DoubleGatingSpec):  # its experts answer two states
        yield from [Choice.of(part.moe, dim)] * 2
    elif isinstance(part, BlockSpec):  # an inner MoE layer leaves its record behind the block's own
        values = [getattr(part, field.name) for field in dataclasses.fields(part)]
        for value in sorted(values, key=lambda value: isinstance(value, SelectiveSpec)):
            yield from choices(value, dim, keys)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from choices(value, dim, keys)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from choices(getattr(part, field.name), dim, keys)


def mean_keys(length: int) -> float:
    """Keys that a token of a causal row sees on average, itself included."""
    return (length + 1) / 2


def text_name(spec: UnifiedSpec) -> str:
    """Name of the modality that reads text. Raises ValueError where there is none."""
    from modalities.text.spec import TextSpec

    for name, modality in spec.modalities.items():
        if isinstance(modality, TextSpec):
            return name
    raise ValueError(f"modalities: got {', '.join(spec.modalities)}, expected one of type text")


def flops(spec: UnifiedSpec, routed: Sequence[float] | float | None = None) -> float:
    """Operations of the trunk's forward pass for one token of a text row, attention over half the row included; the
    output layer, the same for every trunk of one width, is left out.

    routed  routed experts that a token uses, one figure per MoE layer or the same for all; by default what the routers
            state at even load. Not a number where there are not as many figures as layers found in the description
    """
    keys = mean_keys(spec.modalities[text_name(spec)].length)  # type: ignore[attr-defined]
    total = spec.cost(keys).flops
    if routed is None:
        return total
    layers = list(choices(spec.backbone, spec.backbone.dim, keys))
    used = [float(routed)] * len(layers) if isinstance(routed, (int, float)) else list(routed)
    if len(used) != len(layers):  # a block of a kind that is not known here
        return math.nan
    return total + sum((count - layer.stated) * layer.each for layer, count in zip(layers, used, strict=True))
