"""A sequential block whose norms and residuals follow the rows' conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone.blocks.base import Place, feed_forward
from zoo.backbone.blocks.sequential import Sequential, SequentialSpec
from zoo.backbone.context import BlockContext, Carry
from zoo.backbone.norm import modulate
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class AdaLNSpec(SequentialSpec):
    """A sequential block whose norms and residuals follow the rows' conditioning (DiT, arXiv 2212.09748).

    What a branch reads becomes (1 + scale) x + shift and residual branches are multiplied by a gate, all read from cond
    by a linear map that starts at zero.

    gate  one (branches times 1 + gate: rows without conditioning pass as in a sequential block) or zero (branches times
          gate, adaLN-Zero: every row needs conditioning)
    """

    conditioned: ClassVar[bool] = True

    gate: Literal["one", "zero"] = "one"

    def check(self, dim: int, cond: int) -> None:
        super().check(dim, cond)
        if cond < 1:
            raise ValueError("type: an adaln block needs backbone.cond, the width of the conditioning")

    def cost(self, dim: int, length: float, cond: int, norm: Cost) -> Cost:
        """The modulation is computed once per row, not per token: it has parameters and no operations here."""
        modulation = linear_cost(cond, 6 * dim, bias=True)
        return super().cost(dim, length, cond, norm) + Cost(modulation.total, modulation.active, 0)

    def build(self, dim: int, place: Place) -> AdaLN:
        return AdaLN(self, dim, place)


class AdaLN(Sequential):
    """See AdaLNSpec."""

    def __init__(self, spec: AdaLNSpec, dim: int, place: Place) -> None:
        super().__init__(spec, dim, place)
        self.base = 1.0 if spec.gate == "one" else 0.0
        self.modulation = nn.Linear(place.cond, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
        if ctx.cond is None:
            if self.base == 0:
                raise ValueError("cond: missing; an adaln block with gate: zero needs conditioning for every row")
            return super().forward(x, carry, ctx)
        parts = self.modulation(F.silu(ctx.cond.to(x.dtype))).chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = parts
        state, x = self.enter(0, x)
        y = self.attention(modulate(state, shift_a, scale_a), ctx)
        x = self.leave(0, x, y, (self.base + gate_a)[:, None])
        state, x = self.enter(1, x)
        y, carry = feed_forward(self.ffn, self.layer, modulate(state, shift_f, scale_f), carry, ctx)
        return self.leave(1, x, y, (self.base + gate_f)[:, None]), carry
