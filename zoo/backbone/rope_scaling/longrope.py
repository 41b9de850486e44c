"""A divisor for every frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.backbone.rope_scaling.base import RopeScalingSpec, at_least


@dataclass(frozen=True, kw_only=True)
class LongRopeSpec(RopeScalingSpec):
    """Every frequency divided by a factor of its own; one set of factors up to the trained context, one beyond it
    (LongRoPE, arXiv 2402.13753).

    short                  divisors up to the context, one per frequency
    long                   divisors beyond it
    context                length trained on
    factor                 how many times longer the context becomes; gives attention_factor where that is None
    attention_factor       factor on cos and sin; None for sqrt(1 + ln(factor) / ln(context))
    long_attention_factor  the same beyond the context; None for as within it
    switch                 False keeps the short divisors at any length (PhiMoE in transformers)
    """

    by_length: ClassVar[bool] = True

    short: tuple[float, ...]
    long: tuple[float, ...]
    context: int
    factor: float = 1.0
    attention_factor: float | None = None
    long_attention_factor: float | None = None
    switch: bool = True

    def __post_init__(self) -> None:
        at_least("context", self.context, 2)
        for name in ("short", "long"):
            if any(value <= 0 for value in getattr(self, name)):
                raise ValueError(f"{name}: got {min(getattr(self, name))}, expected numbers above 0")

    def check(self, turned: int) -> None:
        for name in ("short", "long"):
            if len(getattr(self, name)) != turned // 2:
                raise ValueError(f"{name}: got {len(getattr(self, name))} numbers, expected {turned // 2}")

    @property
    def jump(self) -> int | None:
        turns = self.switch and self.short != self.long
        return self.context if turns or self.long_attention_factor is not None else None

    def frequencies(self, theta: float, turned: int, device: torch.device, length: Tensor | None) -> Tensor:
        assert length is not None
        divisor = torch.tensor(self.short, device=device)
        if self.switch:
            divisor = torch.where(length > self.context, torch.tensor(self.long, device=device), divisor)
        return 1.0 / (divisor * theta ** (torch.arange(0, turned, 2, device=device).float() / turned))

    def attention(self, length: Tensor | None) -> float | Tensor:
        within = self.attention_factor
        if within is None:
            within = math.sqrt(1 + math.log(self.factor) / math.log(self.context)) if self.factor > 1 else 1.0
        if self.long_attention_factor is None or length is None:
            return within
        return torch.where(length > self.context, self.long_attention_factor, within)
