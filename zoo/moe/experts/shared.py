"""Shared experts: they see every token (DeepSeekMoE, arXiv 2401.06066), plain, gated, or weighed by the router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.experts.ffn import fan_in_, zero_
from zoo.moe.glu import GLUSpec
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class SharedSpec(GLUSpec):
    """`count` gated experts that every token uses.

    count       number of shared experts
    hidden      width of each
    gate        none (added as they are), sigmoid (each times sigmoid(w x), as Qwen2-MoE), router (weighed by the
                router's own shared columns, as UniMoE-Audio)
    activation  silu | gelu | gelu_tanh | relu of the gate
    bias        whether their three maps have biases
    alpha       the gate is silu(alpha gate) / alpha; silu only
    limit       the gate is clamped to at most this before its activation, up to plus or minus it; null for no limit
    offset      added to up
    """

    count: int = 1
    gate: Literal["none", "sigmoid", "router"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise ValueError(f"count: got {self.count}, expected 1 or more (leave `shared` out for none)")

    @property
    def columns(self) -> int:
        """Router columns they take."""
        return self.count if self.gate == "router" else 0

    def cost(self, dim: int) -> Cost:
        """Parameters and operations of all of them."""
        ffn = self.network_cost(dim, self.hidden).times(self.count)
        return ffn + linear_cost(dim, self.count) if self.gate == "sigmoid" else ffn

    def build(self, dim: int) -> SharedExperts:
        """The module."""
        return SharedExperts(self, dim)


class SharedExperts(nn.Module):
    """All shared experts as one gated network of width count * hidden: weights act on the gated layer, which is the
    same as acting on each expert's output because the last map is linear; its bias [count, D] is weighed apart."""

    def __init__(self, spec: SharedSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        width = spec.count * spec.hidden
        self.gate_up = nn.Parameter(torch.empty(2 * width, dim))
        self.down = nn.Parameter(torch.empty(dim, width))
        self.gate_up_bias = nn.Parameter(torch.zeros(2 * width)) if spec.bias else None
        self.down_bias = nn.Parameter(torch.zeros(spec.count, dim)) if spec.bias else None
        self.gate = nn.Parameter(torch.empty(spec.count, dim)) if spec.gate == "sigmoid" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the experts anew; each as a single expert of its width would be drawn."""
        fan_in_(self.gate_up)
        nn.init.normal_(self.down, std=self.spec.hidden**-0.5)
        zero_(self.gate_up_bias, self.down_bias)
        if self.gate is not None:
            nn.init.normal_(self.gate, std=0.02)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """x [T, D], weight [T, count] from the router (None where it does not weigh them) -> [T, D]."""
        hidden = self.spec.gated(F.linear(x, self.gate_up, self.gate_up_bias))
        if self.gate is not None:
            weight = torch.sigmoid(F.linear(x, self.gate))
        if weight is not None:
            weight = weight.to(hidden.dtype)
            hidden = (hidden.unflatten(-1, (self.spec.count, self.spec.hidden)) * weight[..., None]).flatten(-2)
        y = F.linear(hidden, self.down)
        if self.down_bias is None:
            return y
        return y + (self.down_bias.sum(0) if weight is None else weight @ self.down_bias)
