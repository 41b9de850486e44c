"""Long waves stretched, short ones kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.backbone.rope_scaling.base import RopeScalingSpec, at_least, plain


@dataclass(frozen=True, kw_only=True)
class Llama3Spec(RopeScalingSpec):
    """Frequencies of long waves divided by the factor, those of short waves kept, a smooth passage between (Llama 3.1,
    arXiv 2407.21783).

    factor            how many times longer the context becomes
    context           length trained on
    low_freq_factor   waves longer than context / low_freq_factor are divided
    high_freq_factor  waves shorter than context / high_freq_factor are kept
    """

    factor: float
    context: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        at_least("factor", self.factor, 1)
        at_least("context", self.context, 1)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"high_freq_factor: got {self.high_freq_factor}, expected more than low_freq_factor, "
                f"{self.low_freq_factor}, which is more than 0"
            )

    def frequencies(self, theta: float, turned: int, device: torch.device, length: Tensor | None) -> Tensor:
        frequency = plain(theta, turned, device)
        turns = self.context / (2 * math.pi / frequency)
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return (1 - keep) * frequency / self.factor + keep * frequency
