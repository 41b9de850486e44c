"""What every kind of attention is described by and offers to a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from zoo.backbone.context import BlockContext
from zoo.moe.experts.ffn import fan_in_
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """The description of attention; `type` names it, grouped_query where it is left out."""

    kind: ClassVar[str] = "attention"
    default_type: ClassVar[str] = "grouped_query"

    def check(self, dim: int) -> None:
        """Raises ValueError("key: ...") where it does not fit a trunk of width `dim`."""

    def rotary(self, dim: int) -> int:
        """How many dimensions of a head are turned by rotary positions; 0 for none."""
        return 0

    def cost(self, dim: int, length: float) -> Cost:
        """For a token that sees `length` keys."""
        raise NotImplementedError

    def build(self, dim: int, index: int, eps: float) -> Attention:
        """The module; `index` is its slot in the cache, `eps` that of its norms."""
        raise NotImplementedError


class Attention(nn.Module):
    """Mixes tokens: x [B, S, D] -> [B, S, D].

    index   its slot in the cache
    rotary  dimensions of a head that turn; a forward pass finds ctx.rope[rotary] where it is not 0
    window  how many of the last keys a query sees, None for all; a forward pass finds ctx.visible[window]
    read_directly  names of linear maps whose weight is read without calling them, so that no adapter can stand there
    """

    index: int
    rotary: int
    window: int | None
    read_directly: ClassVar[frozenset[str]] = frozenset()

    def forward(self, x: Tensor, ctx: BlockContext) -> Tensor:
        """x [B, S, D] -> [B, S, D]."""
        raise NotImplementedError


def start_(linear: nn.Linear) -> None:
    """Draws a map's weight by its fan-in; its bias starts at zero."""
    fan_in_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
