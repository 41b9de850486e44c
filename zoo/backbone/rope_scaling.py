"""How rotary frequencies are changed for contexts longer than those a model was trained on.

Numbers agree with those of transformers' tables for the same kinds, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RopeScalingSpec:
    """The description of a change of frequencies; `type` names it. This base changes nothing."""

    kind: ClassVar[str] = "rope_scaling"
    by_length: ClassVar[bool] = False

    def check(self, turned: int) -> None:
        """Raises ValueError("key: ...") where it does not fit heads of which `turned` dimensions turn."""

    def frequencies(self, theta: float, turned: int, device: torch.device, length: Tensor | None) -> Tensor:
        """[turned / 2] in float32; length is a scalar where `by_length`."""
        return plain(theta, turned, device)

    def attention(self, length: Tensor | None) -> float | Tensor:
        """Factor on cos and sin, so its square on query-key products."""
        return 1.0

    @property
    def sharpness(self) -> float:
        """Factor on the softmax scale of latent attention."""
        return 1.0


def plain(theta: float | Tensor, turned: int, device: torch.device) -> Tensor:
    """theta^(-2i / turned), i = 0 ... turned / 2 - 1."""
    return 1.0 / theta ** (torch.arange(0, turned, 2, device=device).float() / turned)


@dataclass(frozen=True, kw_only=True)
class LinearSpec(RopeScalingSpec):
    """All frequencies divided by one factor: positions are interpolated (arXiv 2306.15595).

    factor  how many times longer the context becomes
    """

    factor: float

    def __post_init__(self) -> None:
        _at_least("factor", self.factor, 1)

    def frequencies(self, theta: float, turned: int, device: torch.device, length: Tensor | None) -> Tensor:
        return plain(theta, turned, device) / self.factor


@dataclass(frozen=True, kw_only=True)
class NTKSpec(RopeScalingSpec):
    """A greater base, so that low frequencies are stretched more than high ones, at any length (Hunyuan).

    alpha  the base is multiplied by alpha^(d / (d - 2)), d the turned dimensions
    """

    alpha: float

    def __post_init__(self) -> None:
        _at_least("alpha", self.alpha, 1)

    def check(self, turned: int) -> None:
        _wide(turned)

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
        _at_least("factor", self.factor, 1)
        _at_least("context", self.context, 1)

    def check(self, turned: int) -> None:
        _wide(turned)

    def frequencies(self, theta: float, turned: int, device: torch.device, length: Tensor | None) -> Tensor:
        assert length is not None
        stretch = self.factor * length.clamp(min=self.context) / self.context - (self.factor - 1)
        return plain(theta * stretch ** (turned / (turned - 2)), turned, device)


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
        _at_least("factor", self.factor, 1)
        _at_least("context", self.context, 1)
        if self.beta_slow <= 0:
            raise ValueError(f"beta_slow: got {self.beta_slow}, expected more than 0")
        _at_least("beta_fast", self.beta_fast, self.beta_slow)

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
        _at_least("factor", self.factor, 1)
        _at_least("context", self.context, 1)
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
        _at_least("context", self.context, 2)
        for name in ("short", "long"):
            if any(value <= 0 for value in getattr(self, name)):
                raise ValueError(f"{name}: got {min(getattr(self, name))}, expected numbers above 0")

    def check(self, turned: int) -> None:
        for name in ("short", "long"):
            if len(getattr(self, name)) != turned // 2:
                raise ValueError(f"{name}: got {len(getattr(self, name))} numbers, expected {turned // 2}")

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


def _at_least(name: str, value: float, low: float) -> None:
    if value < low:
        raise ValueError(f"{name}: got {value}, expected {low} or more")


def _wide(turned: int) -> None:
    if turned <= 2:
        raise ValueError(f"type: got heads of which {turned} dimensions turn, expected more than 2")
