"""What stands after attention in a block: the MoE layer, or one dense feed-forward network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.experts.ffn import fan_in_, zero_
from zoo.moe.glu import GLUSpec
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class FeedForwardSpec:
    """The description of a feed-forward layer; `type` names it (moe or dense)."""

    kind: ClassVar[str] = "ffn"

    def check(self, dim: int) -> None:
        """Raises ValueError("key: ...") where it does not fit a trunk of width `dim`."""

    def cost(self, dim: int) -> Cost:
        """Parameters and operations for one token."""
        raise NotImplementedError

    def build(self, dim: int) -> nn.Module:
        """The layer of width `dim`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DenseSpec(GLUSpec, FeedForwardSpec):
    """One gated network that every token uses: down(silu(gate x) * up x) unless the keys below say otherwise.

    hidden      width of the gated layer
    activation  silu | gelu | gelu_tanh | relu of the gate
    bias        whether the three maps have biases
    alpha       the gate is silu(alpha gate) / alpha; silu only
    limit       the gate is clamped to at most this before its activation, up to plus or minus it; null for no limit
    offset      added to up
    """

    def cost(self, dim: int) -> Cost:
        return self.network_cost(dim, self.hidden)

    def build(self, dim: int) -> Dense:
        return Dense(self, dim)


class Product(nn.Module):
    """x times a weight it is given, a module without weights of its own: where an adapter hooks in."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[..., I], [O, I], [O] -> [..., O]."""
        return F.linear(x, weight, bias)


class Dense(nn.Module):
    """gate_up [2F, D] (gate first), down [D, F], gate_up_bias [2F], down_bias [D]: the layout of one gated expert."""

    def __init__(self, spec: DenseSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.into, self.out_of = Product(), Product()
        self.gate_up = nn.Parameter(torch.empty(2 * spec.hidden, dim))
        self.down = nn.Parameter(torch.empty(dim, spec.hidden))
        self.gate_up_bias = nn.Parameter(torch.zeros(2 * spec.hidden)) if spec.bias else None
        self.down_bias = nn.Parameter(torch.zeros(dim)) if spec.bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the network anew."""
        fan_in_(self.gate_up)
        fan_in_(self.down)
        zero_(self.gate_up_bias, self.down_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        inner = self.into(x, self.gate_up, self.gate_up_bias)
        return self.out_of(self.spec.gated(inner), self.down, self.down_bias)
