"""LoRA experts beside a loaded model's linear maps, and back into them where that can be exact (MoLA, arXiv
2402.08562)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from zoo.backbone.adapters.base import AdapterSpec
from zoo.backbone.adapters.counts import Rule
from zoo.backbone.adapters.lora_experts import LoraExpertsOfBlock, LoraExpertsSpec
from zoo.models.unified import ModelSpec, Unified, UnifiedSpec
from zoo.surgery.base import Described, State, SurgerySpec, take


@dataclass(frozen=True, kw_only=True)
class AddLoraExpertsSpec(SurgerySpec):
    """Puts an adapter beside maps of a model that has none; the experts start silent, so outputs stay as they are.

    adapter  what stands beside which maps
    """

    bound: ClassVar[float | None] = 0.0

    adapter: AdapterSpec

    def check(self, spec: ModelSpec, sources: Mapping[str, ModelSpec]) -> None:
        self._adapted(spec)

    def _adapted(self, spec: ModelSpec) -> UnifiedSpec:
        spec = _unified(spec)
        if spec.backbone.adapter is not None:
            raise ValueError("adapter: the model has one already; merge it first")
        return replace(spec, backbone=replace(spec.backbone, adapter=self.adapter))

    def apply(self, spec: ModelSpec, state: State, sources: Mapping[str, Described]) -> Described:
        adapted = self._adapted(spec)
        fresh = adapted.build().state_dict()
        return adapted, {name: take(state, name, v) if name in state else v for name, v in fresh.items()}


@dataclass(frozen=True, kw_only=True)
class MergeLoraExpertsSpec(SurgerySpec):
    """Adds experts that are a fixed matrix to the maps they stand beside, and takes the adapter away. No keys.

    A model without an adapter stays as it is. Experts that a router chooses by the token are refused.
    """

    bound: ClassVar[float | None] = 1e-5

    def apply(self, spec: ModelSpec, state: State, sources: Mapping[str, Described]) -> Described:
        spec = _unified(spec)
        if spec.backbone.adapter is None:
            return spec, {name: value.clone() for name, value in state.items()}
        model = spec.build()
        model.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)  # in its precision
        for index, block in enumerate(model.backbone.blocks):
            for adapter in [m for m in block.modules() if isinstance(m, LoraExpertsOfBlock)]:
                try:
                    _merge(adapter)
                except ValueError as error:
                    raise ValueError(f"backbone.blocks.{index}.{error}") from error
        plain = replace(spec, backbone=replace(spec.backbone, adapter=None))
        kept = plain.build().state_dict().keys()
        return plain, {name: value.detach() for name, value in model.state_dict().items() if name in kept}


@torch.no_grad()
def _merge(adapter: LoraExpertsOfBlock) -> None:
    for place, product in adapter.products():
        rows = place.matrix[place.start : place.stop]
        rows.copy_((rows.double() + product.to(rows.device)).to(rows.dtype))


def _unified(spec: ModelSpec) -> UnifiedSpec:
    if not isinstance(spec, UnifiedSpec):
        raise ValueError(f"adapter: stands beside maps of a trunk, which a {type(spec).__name__} has not")
    return spec


def add_lora_experts(
    model: Unified,
    counts: Rule | tuple[int, ...] = "inverted_triangle",
    ranks: int | tuple[int, ...] = 8,
    targets: tuple[str, ...] = ("attention.*",),
    *,
    alpha: float = 16.0,
    dropout: float = 0.0,
) -> Unified:
    """A model with LoRA experts beside its maps, its own weights frozen; see LoraExpertsSpec. It shares no weights with
    the given one and answers the same until it is trained.

    Raises ValueError naming a pattern that no map matches, and the maps there are."""
    adapter = LoraExpertsSpec(counts=counts, ranks=ranks, targets=targets, alpha=alpha, dropout=dropout)
    return _operated(AddLoraExpertsSpec(adapter=adapter), model)


def merge_lora_experts(model: Unified) -> Unified:
    """A model of plain maps that answers the same. Raises ValueError naming a map whose experts are no fixed matrix."""
    return _operated(MergeLoraExpertsSpec(), model)


def _operated(surgery: SurgerySpec, model: Unified) -> Unified:
    surgery.check(model.spec, {})
    spec, state = surgery.apply(model.spec, model.state_dict(), {})
    result = spec.build()
    assert isinstance(result, Unified)
    result.load_state_dict(state, assign=True)
    place = next(model.parameters())
    return result.to(place.device, place.dtype).train(model.training)
