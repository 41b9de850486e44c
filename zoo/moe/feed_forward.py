"""What stands after attention in a block: the MoE layer, or one dense feed-forward network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.experts.ffn import fan_in_
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class FeedForwardSpec:
    """The description of a feed-forward layer; `type` names it (moe or dense)."""

    kind: ClassVar[str] = "ffn"

    def cost(self, dim: int) -> Cost:
        """Parameters and operations for one token."""
        raise NotImplementedError

    def build(self, dim: int) -> nn.Module:
        """The layer of width `dim`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DenseSpec(FeedForwardSpec):
    """One SwiGLU network that every token uses.

    hidden  width of the gated layer
    """

    hidden: int

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden: got {self.hidden}, expected 1 or more")

    def cost(self, dim: int) -> Cost:
        return linear_cost(dim, 2 * self.hidden) + linear_cost(self.hidden, dim)

    def build(self, dim: int) -> Dense:
        return Dense(self, dim)


class Dense(nn.Module):
    """down(silu(gate x) * up x); gate_up [2F, D] (gate first), down [D, F]: the layout of one SwiGLU expert."""

    def __init__(self, spec: DenseSpec, dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(2 * spec.hidden, dim))
        self.down = nn.Parameter(torch.empty(dim, spec.hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the network anew."""
        fan_in_(self.gate_up)
        fan_in_(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate, up = F.linear(x, self.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down)
