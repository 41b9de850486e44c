"""Union of experts: slices of one multilayer perceptron that sum to it (UoME, arXiv 2503.02495)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.moe.experts.base import Backend
from zoo.moe.experts.ffn import GELUExperts, GELUSpec
from zoo.moe.routing import Routing
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class UnionSpec(GELUSpec):
    """Slice e of down(gelu(up x)): columns of its hidden layer, with R slices of them making the whole network.

    All slices with weight 1 on all tokens are the dense network of width R * hidden; some of them are that network
    with the other slices of `down` set to zero. The output bias belongs to the network: it is added once to every real
    token, not per slice.

    hidden       width of one slice
    bias         whether both maps have a bias
    approximate  none (exact) or tanh
    """

    def cost(self, dim: int) -> Cost:
        """Of one slice, without the output bias."""
        out = dim if self.bias else 0
        whole = super().cost(dim)
        return Cost(whole.total - out, whole.active - out, whole.flops)

    def layer_cost(self, dim: int, count: int, used: float) -> Cost:
        out = dim if self.bias else 0
        return super().layer_cost(dim, count, used) + Cost(out, out, 0)

    def build(self, dim: int, count: int, backend: Backend) -> UnionExperts:
        return UnionExperts(self, dim, count, backend)


class UnionExperts(GELUExperts):
    """up [R, F, D], up_bias [R, F], down [R, D, F] as GELU experts, and out_bias [D]."""

    common = frozenset({"out_bias"})

    def __init__(self, spec: UnionSpec, dim: int, count: int, backend: Backend) -> None:
        super().__init__(spec, dim, count, backend)
        self.down_bias = None
        self.out_bias = nn.Parameter(torch.zeros(dim)) if spec.bias else None

    def reset_parameters(self) -> None:
        """Draws all slices anew, as the whole network would be drawn."""
        super().reset_parameters()
        nn.init.normal_(self.down, std=(self.count * self.down.shape[-1]) ** -0.5)

    def after(self, y: Tensor, routing: Routing) -> Tensor:
        if self.out_bias is None:
            return y
        return torch.where(routing.mask[:, None], y + self.out_bias, 0)
