"""What every change of rotary frequencies is described by.

Numbers agree with those of transformers' tables for the same kinds, in float32.
"""

from __future__ import annotations

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
    def jump(self) -> int | None:
        """The length beyond which all positions turn otherwise than up to it, so that cached keys no longer fit; None
        where there is none, or where every length differs a little (dynamic)."""
        return None

    @property
    def sharpness(self) -> float:
        """Factor on the softmax scale of latent attention."""
        return 1.0


def plain(theta: float | Tensor, turned: int, device: torch.device) -> Tensor:
    """theta^(-2i / turned), i = 0 ... turned / 2 - 1."""
    return 1.0 / theta ** (torch.arange(0, turned, 2, device=device).float() / turned)


def at_least(name: str, value: float, low: float) -> None:
    """Raises ValueError where a key's value is lower."""
    if value < low:
        raise ValueError(f"{name}: got {value}, expected {low} or more")


def wide(turned: int) -> None:
    """Raises ValueError where the exponent d / (d - 2) has no value."""
    if turned <= 2:
        raise ValueError(f"type: got heads of which {turned} dimensions turn, expected more than 2")
