"""The weights of another model, as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from zoo.models.unified import ModelSpec
from zoo.surgery.base import Described, State, SurgerySpec, take


@dataclass(frozen=True, kw_only=True)
class CopySpec(SurgerySpec):
    """All weights of another model with the same tensors; outputs are equal where both descriptions are.

    stage    the model whose weights are taken; in a curriculum, the name of an earlier stage
    partial  tensors that only one of the two models has are left out, or stay as they are; nothing is promised then
    """

    bound: ClassVar[float | None] = 0.0

    stage: str
    partial: bool = False

    def sources(self) -> tuple[str, ...]:
        return (self.stage,)

    def owner(self, modality: str) -> str | None:
        return self.stage

    def apply(self, spec: ModelSpec, state: State, sources: Mapping[str, Described]) -> Described:
        _, weights = sources[self.stage]
        for name in weights:
            if name not in state and not self.partial:
                raise ValueError(f"{name}: held by {self.stage!r}, but not by the model it is copied to")
        return spec, {
            name: value.clone() if self.partial and name not in weights else take(weights, name, value)
            for name, value in state.items()
        }
