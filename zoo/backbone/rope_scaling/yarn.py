"""YaRN: low frequencies interpolated, high ones kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.backbone.rope_scaling.base import RopeScalingSpec, at_least


@dataclass(frozen=True, kw_only=True)
class YarnSpec(RopeScalingSpec):
    """Low frequencies interpolated, high ones kept, and logits sharpened (YaRN, arXiv 2309.00071).

    factor              how many times longer the context becomes
    context             length trained on
    beta_fast           frequencies that turn this often within the context, or more, are kept
    beta_slow           frequencies that turn this often, or less, are interpolated in full
    truncate            round the first and last frequency of the transition outwards to whole ones
    attention_factor    factor on cos and sin; None for s(1), or given both s(mscale) / s(mscale_all_dim), with
                        s(m) = 0.1 m ln(factor) + 1
    mscale              see there (DeepSeek)
    mscale_all_dim      also multiplies the softmax scale of latent attention by s(mscale_all_dim) squared
    """

    factor: float
    context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        at_least("factor", self.factor, 1)
        at_least("context", self.context, 1)
        if self.beta_slow <= 0:
            raise ValueError(f"beta_slow: got {self.beta_slow}, expected more than 0")
        at_least("beta_fast", self.beta_fast, self.beta_slow)

    def frequencies(self, theta: float, turned: int, device: torch.device, length: Tensor | None) -> Tensor:
        low, high = self._range(theta, turned)
        ramp = ((torch.arange(turned // 2, device=device).float() - low) / (high - low)).clamp(0, 1)
        grown = theta ** (torch.arange(0, turned, 2, device=device).float() / turned)
        return 1.0 / (self.factor * grown) * ramp + 1.0 / grown * (1 - ramp)

    def _range(self, theta: float, turned: int) -> tuple[float, float]:
        """First and last index of the transition (eq. 23, solved for the index)."""

        def index(turns: float) -> float:
            return turned * math.log(self.context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, turned - 1)
        return low, high + 0.001 if low == high else high

    def attention(self, length: Tensor | None) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._sharpened(self.mscale) / self._sharpened(self.mscale_all_dim)
        return self._sharpened(1.0)

    @property
    def sharpness(self) -> float:
        return self._sharpened(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _sharpened(self, strength: float) -> float:
        return 0.1 * strength * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
