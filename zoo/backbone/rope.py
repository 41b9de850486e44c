"""Rotary positions (arXiv 2104.09864) on several axes, in two layouts, stretched where asked for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.backbone.rope_scaling import RopeScalingSpec


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """How positions turn queries and keys. A token with one position counts as having it on every axis, so text is
    turned as by ordinary one-axis rotary positions.

    theta     base of the frequencies
    axes      number of position axes (1 text, 2 with images, 3 with video)
    layout    which axis turns which frequency: interleaved (axis i mod axes, so each has high and low ones) or sections
    sections  frequencies per axis for layout sections, summing to half the turned dimensions
    pairs     which dimensions turn together: halves (i and i + half) or adjacent (2 i and 2 i + 1)
    scaling   how frequencies are changed for contexts longer than those trained on; None for not at all
    """

    theta: float = 10000.0
    axes: int = 1
    layout: Literal["interleaved", "sections"] = "interleaved"
    sections: tuple[int, ...] = ()
    pairs: Literal["halves", "adjacent"] = "halves"
    scaling: RopeScalingSpec | None = None

    def __post_init__(self) -> None:
        if self.axes < 1:
            raise ValueError(f"axes: got {self.axes}, expected 1 or more")
        if self.theta <= 1:
            raise ValueError(f"theta: got {self.theta}, expected more than 1")
        if self.layout == "sections" and len(self.sections) != self.axes:
            raise ValueError(f"sections: got {len(self.sections)} of them, expected one per axis ({self.axes})")

    def check(self, turned: int) -> None:
        """Raises ValueError where sections or scaling do not fit heads of which an even number of dimensions turn."""
        if self.layout == "sections" and sum(self.sections) != turned // 2:
            raise ValueError(
                f"sections: sum to {sum(self.sections)}, expected {turned // 2}, half the turned dimensions"
            )
        if self.scaling is not None:
            try:
                self.scaling.check(turned)
            except ValueError as error:
                raise ValueError(f"scaling.{error}") from error

    @property
    def sharpness(self) -> float:
        """What latent attention multiplies its softmax scale by (DeepSeek's rule for yarn)."""
        return 1.0 if self.scaling is None else self.scaling.sharpness


@dataclass(frozen=True)
class Rotation:
    """The turning of one forward pass, for heads of which the first `turned` dimensions turn.

    cos, sin   [B or 1, S, 1, turned] in float32; sin carries the sign with which a dimension's partner enters
    adjacent   whether partners stand next to each other rather than half of `turned` apart
    sharpness  see RopeSpec
    """

    cos: Tensor
    sin: Tensor
    adjacent: bool = False
    sharpness: float = 1.0

    def turn(self, x: Tensor) -> Tensor:
        """x [B, H, S, d] with its first dimensions turned, computed in float32 at least, in x's dtype."""
        turned = self.cos.shape[-1]
        rows = x.transpose(1, 2)  # as linear maps leave them
        part = rows if x.shape[-1] == turned else rows[..., :turned]
        cos, same = self.cos, x.dtype == self.cos.dtype
        if not same:
            part = part.to(torch.promote_types(x.dtype, cos.dtype))
            cos = cos.to(part.dtype)
        # one new tensor only: pages of fresh memory cost more than the products
        out = self._partner(part).mul_(self.sin).addcmul_(part, cos)
        out = out if same else out.to(x.dtype)
        out = out if x.shape[-1] == turned else torch.cat([out, rows[..., turned:]], dim=-1)
        return out.transpose(1, 2)

    def _partner(self, x: Tensor) -> Tensor:
        """A copy in which every dimension stands where its partner stood."""
        if self.adjacent:
            return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        first, second = x.chunk(2, -1)
        return torch.cat((second, first), -1)


def rotation(position: Tensor, spec: RopeSpec, turned: int, mask: Tensor | None = None) -> Rotation:
    """position [B, S, P] with P = 1 or spec.axes, mask [B, S] of real tokens -> the turning of these tokens.

    Where frequencies depend on the length (dynamic, longrope), it is the greatest position of a real token plus 1, over
    the whole batch, as in transformers: keys that a cache holds keep the angles of their own step.
    """
    if position.shape[-1] not in (1, spec.axes):
        raise ValueError(f"position: got {position.shape[-1]} axes, expected 1 or {spec.axes} (rope.axes)")
    device, scaling, factor = position.device, spec.scaling, None
    if scaling is None or not scaling.by_length:
        frequency = _kept(spec, turned, device)
        factor = None if scaling is None else scaling.attention(None)
    else:
        length = longest(position, mask)
        frequency, factor = scaling.frequencies(spec.theta, turned, device, length), scaling.attention(length)
    angle = position.float() * frequency if spec.axes == 1 else _on_axes(position, spec, turned) * frequency
    cos, sin = angle.cos(), angle.sin()
    if isinstance(factor, Tensor) or factor not in (None, 1.0):
        cos, sin = cos * factor, sin * factor
    if spec.pairs == "adjacent":
        cos, sin = cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2)
    else:
        cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    return Rotation(cos[:, :, None], sin[:, :, None], spec.pairs == "adjacent", spec.sharpness)


def longest(position: Tensor, mask: Tensor | None) -> Tensor:
    """The greatest position of a real token plus 1, a scalar; 1 where there is none."""
    if not position.numel():
        return torch.ones((), device=position.device)
    if mask is not None:
        position = position.masked_fill(~mask[..., None], 0)
    return position.amax().float() + 1


def _on_axes(position: Tensor, spec: RopeSpec, turned: int) -> Tensor:
    """[B, S, turned / 2]: the position that turns each frequency."""
    half, device = turned // 2, position.device
    if spec.layout == "sections":
        sizes = torch.tensor(spec.sections, device=device)
        axis = torch.arange(spec.axes, device=device).repeat_interleave(sizes, output_size=half)
    else:
        axis = torch.arange(half, device=device) % spec.axes
    return position.float().expand(*position.shape[:2], spec.axes)[..., axis]


def _kept(spec: RopeSpec, turned: int, device: torch.device) -> Tensor:
    """Frequencies that depend on no length, computed once."""
    if torch.compiler.is_compiling() or device.type == "meta":
        return _frequencies(spec, turned, device)
    return _kept_frequencies(spec, turned, device)


def _frequencies(spec: RopeSpec, turned: int, device: torch.device) -> Tensor:
    scaling = spec.scaling or RopeScalingSpec()
    return scaling.frequencies(spec.theta, turned, device, None)


@functools.lru_cache(64)
def _kept_frequencies(spec: RopeSpec, turned: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _frequencies(spec, turned, device)
