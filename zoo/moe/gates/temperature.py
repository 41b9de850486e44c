"""Temperatures that logits are divided by: fixed, scheduled over optimiser steps, or learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modalities.precise import Precise


@dataclass(frozen=True, kw_only=True)
class TemperatureSpec:
    """A temperature tau > 0.

    start  its (first) value
    end    where a schedule ends, at most start; null for no schedule
    steps  optimiser steps from start to end; it stays there, also where the step is not known
    curve  exponential (start (end / start)^(step / steps)) or linear, as EvoMoE's code (arXiv 2112.14397)
    learn  a parameter: tau = floor + softplus(rate rho)
    rate   how many times as far a step of Adam, whose size knows no scale, moves a learned temperature: in place of a
           learning rate of its own
    floor  what a learned temperature stays above
    """

    start: float = 1.0
    end: float | None = None
    steps: int = 1000
    curve: Literal["exponential", "linear"] = "exponential"
    learn: bool = False
    rate: float = 1.0
    floor: float = 0.05

    def __post_init__(self) -> None:
        if self.start <= 0:
            raise ValueError(f"start: got {self.start}, expected more than 0")
        if self.end is not None and not 0 < self.end <= self.start:
            raise ValueError(f"end: got {self.end}, expected more than 0 and at most start = {self.start}")
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected 1 or more")
        if self.learn and self.end is not None:
            raise ValueError("learn: a scheduled temperature is not learned; expected end: null, or learn: false")
        if self.rate <= 0:
            raise ValueError(f"rate: got {self.rate}, expected more than 0")
        if self.rate != 1 and not self.learn:
            raise ValueError(f"rate: got {self.rate}, but nothing is learned; expected 1, or learn: true")
        if self.learn and not 0 <= self.floor < self.start:
            raise ValueError(f"floor: got {self.floor}, expected 0 or more and less than start = {self.start}")

    def build(self) -> Temperature:
        """The module."""
        return Temperature(self)


class Temperature(Precise):
    """`temperature(step) -> [] tau`; `rho` is its parameter where it is learned."""

    def __init__(self, spec: TemperatureSpec) -> None:
        super().__init__()
        self.spec = spec
        self.rho = nn.Parameter(torch.empty((), dtype=torch.float32)) if spec.learn else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start."""
        if self.rho is not None:
            nn.init.constant_(self.rho, math.log(math.expm1(self.spec.start - self.spec.floor)) / self.spec.rate)

    def forward(self, step: Tensor | None) -> Tensor | float:
        """The temperature at an optimiser step, a tensor without dimensions where it moves."""
        spec = self.spec
        if self.rho is not None:
            return spec.floor + F.softplus(spec.rate * self.rho)
        if spec.end is None:
            return spec.start
        if step is None:
            return spec.end
        done = (step.double() / spec.steps).clamp(0, 1)
        if spec.curve == "linear":
            return spec.start + done * (spec.end - spec.start)
        return spec.start * torch.exp(done * math.log(spec.end / spec.start))
