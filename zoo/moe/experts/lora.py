"""Low-rank linear experts: alpha / r * B A x (LoRA, arXiv 2106.09685), which MoLA adds to maps (arXiv 2402.08562)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.experts.base import Backend, Experts, ExpertSpec
from zoo.moe.routing import Routing, RoutingContext, Rows
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class LoraSpec(ExpertSpec):
    """alpha / rank * B A dropout(x), B starting at zero.

    rank     r of the two maps
    alpha    numerator of the factor
    dropout  share of the inputs set to zero in training, drawn for every row of every expert
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: got {self.rank}, expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 <= dropout < 1")

    @property
    def noise(self) -> bool:
        return self.dropout > 0

    def outputs(self, dim: int) -> int:
        """The width of what an expert answers."""
        return dim

    def cost(self, dim: int) -> Cost:
        return linear_cost(dim, self.rank) + linear_cost(self.rank, self.outputs(dim))

    def build(self, dim: int, count: int, backend: Backend) -> LoraExperts:
        return LoraExperts(self, dim, count, backend)


class LoraExperts(Experts):
    """a [R, r, D] as linear layers are drawn, b [R, outputs, r] zero."""

    def __init__(self, spec: LoraSpec, dim: int, count: int, backend: Backend) -> None:
        super().__init__(count, spec.outputs(dim), backend)
        self.factor, self.dropout = spec.alpha / spec.rank, spec.dropout
        self.a = nn.Parameter(torch.empty(count, spec.rank, dim))
        self.b = nn.Parameter(torch.empty(count, self.width, spec.rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws A uniformly with variance 1 / (3 inputs), as published; B starts at zero."""
        bound = self.a.shape[-1] ** -0.5
        nn.init.uniform_(self.a, -bound, bound)
        nn.init.zeros_(self.b)

    def forward(self, rows: Rows, ctx: RoutingContext) -> Tensor:
        x = self._dropped(rows.x, ctx)
        return self.linear(self.linear(x, self.a, rows.counts), self.b, rows.counts) * self.factor

    def _dropped(self, x: Tensor, ctx: RoutingContext) -> Tensor:
        if not (self.dropout and ctx.training and ctx.generator is not None):
            return x
        # from the seed alone, so that computing a second time draws the same
        generator = torch.Generator().manual_seed((ctx.generator.initial_seed() + 1) % 2**63)
        keep = torch.rand(x.shape, generator=generator).to(x.device) >= self.dropout
        return x * keep / (1 - self.dropout)

    def fuses(self, x: Tensor) -> bool:
        return self.backend == "fused" and not self.dropout

    def mixture(self, x: Tensor, routing: Routing, *, recompute: bool) -> Tensor:
        """All experts at once, since R r is small: weights act between the two maps, on R r channels."""
        table = routing.gate.new_zeros(len(x), routing.experts + 1).scatter(1, routing.expert, routing.gate)
        inner = F.linear(x, self.a.flatten(0, 1)).unflatten(-1, (self.count, -1))
        weighed = inner * (table[:, : self.count, None] * self.factor).to(inner.dtype)
        return F.linear(weighed.flatten(1), self.b.transpose(0, 1).flatten(1))

    def product(self, weight: Tensor) -> Tensor:
        """weight [R] -> [outputs, D]: the one map that the experts with these fixed weights are, in float64."""
        scaled = self.b.detach().double() * (weight.double() * self.factor)[:, None, None]
        return torch.einsum("eor,eri->oi", scaled, self.a.detach().double())
