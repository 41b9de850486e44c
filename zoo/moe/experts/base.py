"""The contract of routed experts: rows sorted by expert in, rows out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from zoo.moe.kernels import grouped, reference
from zoo.moe.routing import Routing, RoutingContext, Rows
from zoo.spec import Cost

# fused: gather, products, activation, gate and combine in one kernel where the kind has one for the device, else
# grouped: sorted rows and grouped products; reference: one expert after the other, readable and slow;
# triton: fused kernels for GPUs of Hopper's size, an error elsewhere (checked in Triton's interpreter, to be asked for
# by name until they have been measured)
Backend = Literal["fused", "grouped", "reference", "triton"]
LINEAR = {"reference": reference.linear, "grouped": grouped.linear, "fused": grouped.linear, "triton": grouped.linear}


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """The description of one expert of a kind; `type` names it."""

    kind: ClassVar[str] = "expert"

    @property
    def noise(self) -> bool:
        """Whether training draws random numbers."""
        return False

    def check(self, count: int) -> None:
        """Raises ValueError("key: ...") where there cannot be `count` such experts in a layer."""

    def check_width(self, dim: int, count: int) -> None:
        """Raises ValueError("key: ...") where they do not fit a layer of width `dim`."""

    def cost(self, dim: int) -> Cost:
        """Parameters and operations of one expert."""
        raise NotImplementedError

    def layer_cost(self, dim: int, count: int, used: float) -> Cost:
        """Of `count` experts of which a token uses `used` on average: that many times one expert, unless experts share
        maps."""
        one = self.cost(dim)
        return Cost(one.total * count, one.active * used, one.flops * used)

    def build(self, dim: int, count: int, backend: Backend) -> Experts:
        """`count` experts, stacked."""
        raise NotImplementedError


class Experts(nn.Module):
    """`experts(rows, ctx) -> [N, width]`: all routed experts of a layer, weights stacked [R, ...].

    gating says where the slot's weight goes: on the output (default), on the input (the kind applies `rows.gate`
    itself), or nowhere. `before` and `after` frame the dispatch; null experts see the layer's own input. common names
    the parameters that are not one slice for each expert.
    """

    gating: ClassVar[Literal["output", "input", "none"]] = "output"
    common: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, count: int, width: int, backend: Backend) -> None:
        super().__init__()
        self.count, self.width, self.backend = count, width, backend
        self.linear = LINEAR[backend]

    def forward(self, rows: Rows, ctx: RoutingContext) -> Tensor:
        """[N, width]; rows behind sum(counts) are zero."""
        raise NotImplementedError

    def before(self, x: Tensor) -> Tensor:
        """What is dispatched for x [T, D]: x itself, or something narrower [T, width of a row] that travels."""
        return x

    def after(self, y: Tensor) -> Tensor:
        """[T, D] from the combined rows [T, width]: themselves, or a map back to the layer's width. What null experts
        answer is written over it."""
        return y

    def fuses(self, x: Tensor) -> bool:
        """Whether `mixture` can be used for inputs like x."""
        return False

    def mixture(self, x: Tensor, routing: Routing, *, recompute: bool) -> Tensor:
        """x [T, D] -> [T, width]: the gated sum over each token's routed slots, in one kernel. recompute keeps no
        activations for the backward pass."""
        raise NotImplementedError

    def weigh(self, out: Tensor, gate: Tensor) -> Tensor:
        """Applies the gate [N] to the output rows, where this kind wants it there."""
        return out * gate[:, None].to(out.dtype) if self.gating == "output" else out
