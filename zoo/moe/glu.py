"""Gated linear units (arXiv 2002.05202), described once for dense networks, routed experts and shared experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.spec import Cost, linear_cost

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, kw_only=True)
class GLUSpec:
    """down(activation(gate x) * (up x + offset)).

    hidden      width of the gated layer
    activation  silu | gelu | gelu_tanh | relu of the gate
    bias        whether the three maps have biases
    alpha       the gate is silu(alpha gate) / alpha = gate / (1 + exp(-alpha gate)); silu only (1.702 in gpt-oss)
    limit       the gate is clamped to at most this before its activation, up to plus or minus it; null for no limit
    offset      added to up (1 in gpt-oss)
    """

    hidden: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    bias: bool = False
    alpha: float = 1.0
    limit: float | None = None
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden: got {self.hidden}, expected 1 or more")
        if self.alpha <= 0:
            raise ValueError(f"alpha: got {self.alpha}, expected more than 0")
        if self.alpha != 1 and self.activation != "silu":
            raise ValueError(
                f"alpha: got {self.alpha} with activation {self.activation}, expected 1 or activation: silu"
            )
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"limit: got {self.limit}, expected more than 0, or null")

    @property
    def plain(self) -> bool:
        """Whether the gated layer is silu(gate) * up and no map has a bias: what kernels specialise on."""
        usual = self.activation == "silu" and self.alpha == 1 and self.limit is None and self.offset == 0
        return usual and not self.bias

    def network_cost(self, dim: int, hidden: int) -> Cost:
        """Of one such network of width `dim` with `hidden` gated channels."""
        return linear_cost(dim, 2 * hidden, self.bias) + linear_cost(hidden, dim, self.bias)

    def gated(self, inner: Tensor) -> Tensor:
        """inner [..., 2F], gate first, to [..., F]."""
        gate, up = inner.chunk(2, dim=-1)
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        if self.alpha == 1:
            gate = ACTIVATIONS[self.activation](gate)
        else:
            gate = gate * torch.sigmoid(self.alpha * gate)
        return gate * (up + self.offset if self.offset else up)
