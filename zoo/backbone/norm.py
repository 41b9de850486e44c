"""Root-mean-square norm (arXiv 1910.07467) and its adaptive form."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in float32 at least and returned in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if x.dtype.itemsize >= 4:
            return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, S, D] * (1 + scale [B, D]) + shift [B, D] (DiT, arXiv 2212.09748)."""
    return x * (1 + scale[:, None]) + shift[:, None]
