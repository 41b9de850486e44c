"""Union of experts: slices of one multilayer perceptron that sum to it (UoME, arXiv 2503.02495)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zoo.moe.experts.base import Backend
from zoo.moe.experts.ffn import GELUExperts, GELUSpec
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class UnionSpec(GELUSpec):
    """Slice e of down(gelu(up x)): columns of its hidden layer, with R slices of them making the whole network.

    All slices with weight 1 on all tokens are the dense network of width R * hidden; some of them are that network with
    the other slices of `down` set to zero. The bias of `down` belongs to the network and not to a slice: it is the
    layer's `out_bias`, added once to every real token.

    hidden       width of one slice
    bias         whether `up` has a bias
    approximate  none (exact) or tanh
    """

    def cost(self, dim: int) -> Cost:
        spared = dim if self.bias else 0
        slice_ = super().cost(dim)
        return Cost(slice_.total - spared, slice_.active - spared, slice_.flops)

    def build(self, dim: int, count: int, backend: Backend) -> UnionExperts:
        return UnionExperts(self, dim, count, backend)


class UnionExperts(GELUExperts):
    """up [R, F, D], up_bias [R, F] and down [R, D, F] as GELU experts."""

    def __init__(self, spec: UnionSpec, dim: int, count: int, backend: Backend) -> None:
        super().__init__(spec, dim, count, backend)
        self.down_bias = None

    def reset_parameters(self) -> None:
        """Draws all slices anew, as the whole network would be drawn."""
        super().reset_parameters()
        nn.init.normal_(self.down, std=(self.count * self.down.shape[-1]) ** -0.5)
