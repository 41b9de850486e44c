"""Norms of the trunk: root mean square (arXiv 1910.07467), layer (arXiv 1607.06450), and the adaptive form."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.spec import Cost

NormKind = Literal["rms", "layer"]


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in float32 at least and returned in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps)
        self.epsilon = eps
        # no buffers: they are no state of the module; one of x's own dtype spares a cast
        self.floor = {dtype: torch.tensor(eps, dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if x.dtype.itemsize >= 4:
            if x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
                return self._in_place(x)
            return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)

    def _in_place(self, x: Tensor) -> Tensor:
        """The same without a graph, in one new tensor of x's size and few calls; torch's own takes several and many."""
        width = x.shape[-1]
        if x.numel() == width:  # one token being decoded: its factor is a number
            row = x.reshape(width)
            return torch.mul(x, self.weight).mul_((torch.dot(row, row).item() / width + self.epsilon) ** -0.5)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        factor = torch.addcmul(self.floor[x.dtype], size, size, value=1 / width).rsqrt_()
        return torch.mul(x, self.weight).mul_(factor)


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm with weight and bias, computed in float32 at least and returned in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if x.dtype.itemsize >= 4:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def build_norm(kind: NormKind, dim: int, eps: float) -> RMSNorm | LayerNorm:
    """A norm over the last axis."""
    return RMSNorm(dim, eps=eps) if kind == "rms" else LayerNorm(dim, eps=eps)


def norm_cost(kind: NormKind, dim: int) -> Cost:
    """The cost of such a norm."""
    count = dim if kind == "rms" else 2 * dim
    return Cost(count, count, 0)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, S, D] * (1 + scale [B, D]) + shift [B, D] (DiT, arXiv 2212.09748)."""
    return x * (1 + scale[:, None]) + shift[:, None]
