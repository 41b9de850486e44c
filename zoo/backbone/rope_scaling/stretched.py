"""One factor for all positions, or a greater base: linear, ntk and dynamic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.backbone.rope_scaling.base import RopeScalingSpec, at_least, plain, wide


@dataclass(frozen=True, kw_only=True)
class LinearSpec(RopeScalingSpec):
    """All frequencies divided by one factor: positions are interpolated (arXiv 2306.15595).

    factor  how many times longer the context becomes
    """

    factor: float

    def __post_init__(self) -> None:
        at_least("factor", self.factor, 1)

    def frequencies(self, theta: float, turned: int, device: torch.device, length: Tensor | None) -> Tensor:
        return plain(theta, turned, device) / self.factor


@dataclass(frozen=True, kw_only=True)
class NTKSpec(RopeScalingSpec):
    """A greater base, so that low frequencies are stretched more than high ones, at any length (Hunyuan).

    alpha  the base is multiplied by alpha^(d / (d - 2)), d the turned dimensions
    """

    alpha: float

    def __post_init__(self) -> None:
        at_least("alpha", self.alpha, 1)

    def check(self, turned: int) -> None:
        wide(turned)

    def frequencies(self, theta: float, turned: int, device: torch.device, length: Tensor | None) -> Tensor:
        return plain(theta * self.alpha ** (turned / (turned - 2)), turned, device)


@dataclass(frozen=True, kw_only=True)
class DynamicSpec(RopeScalingSpec):
    """As ntk, with a base that grows with the length: unchanged up to the trained context, then by
    (factor length / context - factor + 1)^(d / (d - 2)).

    factor   how strongly the base grows
    context  length trained on
    """

    by_length: ClassVar[bool] = True

    factor: float
    context: int

    def __post_init__(self) -> None:
        at_least("factor", self.factor, 1)
        at_least("context", self.context, 1)

    def check(self, turned: int) -> None:
        wide(turned)

    def frequencies(self, theta: float, turned: int, device: torch.device, length: Tensor | None) -> Tensor:
        assert length is not None
        stretch = self.factor * length.clamp(min=self.context) / self.context - (self.factor - 1)
        return plain(theta * stretch ** (turned / (turned - 2)), turned, device)
