"""Rotary positions (arXiv 2104.09864) on several axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """How positions turn queries and keys. A token with one position counts as having it on every axis, so text is
    turned as by ordinary one-axis rotary positions.

    theta     base of the frequencies
    axes      number of position axes (1 text, 2 with images, 3 with video)
    layout    which axis turns which frequency: interleaved (axis i mod axes, so each has high and low ones) or sections
    sections  frequencies per axis for layout sections, summing to half the head size
    """

    theta: float = 10000.0
    axes: int = 1
    layout: Literal["interleaved", "sections"] = "interleaved"
    sections: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.axes < 1:
            raise ValueError(f"axes: got {self.axes}, expected 1 or more")
        if self.theta <= 1:
            raise ValueError(f"theta: got {self.theta}, expected more than 1")
        if self.layout == "sections" and len(self.sections) != self.axes:
            raise ValueError(f"sections: got {len(self.sections)} of them, expected one per axis ({self.axes})")

    def check(self, head_dim: int) -> None:
        """Raises ValueError where the sections do not fit an even head size."""
        if self.layout == "sections" and sum(self.sections) != head_dim // 2:
            raise ValueError(f"sections: sum to {sum(self.sections)}, expected {head_dim // 2}, half the head size")


def angles(position: Tensor, spec: RopeSpec, head_dim: int) -> tuple[Tensor, Tensor]:
    """position [B, S, P] with P = 1 or spec.axes -> cos, sin [B, 1, S, head_dim] in float32."""
    half = head_dim // 2
    if position.shape[-1] not in (1, spec.axes):
        raise ValueError(f"position: got {position.shape[-1]} axes, expected 1 or {spec.axes} (rope.axes)")
    frequency = spec.theta ** (-torch.arange(half, device=position.device, dtype=torch.float32) / half)
    if spec.layout == "sections":
        sizes = torch.tensor(spec.sections, device=position.device)
        axis = torch.arange(spec.axes, device=position.device).repeat_interleave(sizes, output_size=half)
    else:
        axis = torch.arange(half, device=position.device) % spec.axes
    turned = position.float().expand(*position.shape[:2], spec.axes)[..., axis] * frequency
    both = torch.cat([turned, turned], dim=-1)[:, None]
    return both.cos(), both.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, S, head_dim], turned pairwise in the half-split layout."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin
