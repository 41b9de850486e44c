"""Active operations per token: as the description counts them, and with the experts that tokens really used."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zoo.backbone.trunk import LayersSpec
from zoo.models.unified import UnifiedSpec
from zoo.moe.spec import MoESpec

BACKWARD = 2.0  # operations of a backward pass, in forward passes


def moe_specs(part: Any) -> Iterator[MoESpec]:
    """The MoE layers of a description in their order, repeated ones as often as they are repeated."""
    if isinstance(part, MoESpec):
        yield part
    elif isinstance(part, LayersSpec):
        for _ in range(part.repeat):
            yield from moe_specs(part.block)
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from moe_specs(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from moe_specs(value)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from moe_specs(getattr(part, field.name))


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
            state at even load
    """
    length = spec.modalities[text_name(spec)].length  # type: ignore[attr-defined]
    total = spec.cost(mean_keys(length)).flops
    if routed is None:
        return total
    layers = list(moe_specs(spec.backbone))
    used = [float(routed)] * len(layers) if isinstance(routed, (int, float)) else list(routed)
    if len(used) != len(layers):
        raise ValueError(f"routed: got {len(used)} figures, expected one for each of the {len(layers)} MoE layers")
    for layer, count in zip(layers, used, strict=True):
        total += (count - stated(layer)) * layer.experts.cost(spec.backbone.dim).flops
    return total


def stated(layer: MoESpec) -> float:
    """Routed experts that a token uses by the router's own count, at even load over the pool."""
    return layer.router.mean_k(layer.pool) * layer.routed / layer.pool.experts
