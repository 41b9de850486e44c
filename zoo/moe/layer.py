"""The MoE layer: `route`, `start`, `shared`, `finish`, and `forward` that composes them.

    x -> route -> policies -> start (gather rows) -> experts -> finish (combine, null experts) -> + shared(x)

Blocks that overlap work, or whose router, routed and shared experts read different states, call the pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.moe.experts.null import NullExperts
from zoo.moe.experts.shared import SharedExperts
from zoo.moe.kernels import reference
from zoo.moe.routing import Routing, RoutingContext, Rows
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats, summarize


@dataclass(frozen=True)
class Handle:
    """Routed work under way: what `start` began and `finish` needs."""

    x: Tensor
    routing: Routing
    ctx: RoutingContext
    rows: Rows | None


@dataclass(frozen=True)
class MoEOutput:
    """y [T, D]; the routing that was dispatched; the statistics of the step."""

    y: Tensor
    routing: Routing
    stats: Stats


class NonFiniteError(ValueError):
    """A token with NaN or infinite values under `check=True`."""


class MoE(nn.Module):
    """Routed, shared and null experts behind one router. See MoESpec for what can be chosen.

    Padding comes out as zero. A token that is not finite counts as padding for everything but its own output row,
    which is NaN; with `check=True` it is an error instead.
    """

    def __init__(self, spec: MoESpec, dim: int, *, check: bool = False) -> None:
        super().__init__()
        self.spec, self.dim, self.check = spec, dim, check
        self.pool = spec.pool
        self.router = spec.router.build(dim, self.pool)
        self.experts = spec.experts.build(dim, spec.routed, spec.backend)
        self.null_experts = NullExperts(dim, self.pool)
        self.shared_experts: SharedExperts | None = spec.shared.build(dim) if spec.shared else None
        self.dispatch = spec.dispatch.build(self.pool)

    def forward(self, x: Tensor, ctx: RoutingContext) -> MoEOutput:
        """x [T, D] or [B, S, D] with T = B * S as ctx says -> MoEOutput with y of x's shape."""
        flat = self._flat(x, ctx)
        finite = self._finite(flat)
        clean = torch.where(finite[:, None], flat, 0)
        ctx = ctx.replace(mask=ctx.mask & finite)
        routing = self.route(clean, ctx)
        y = self.finish(self.start(clean, routing, ctx))
        if self.shared_experts is not None:
            y = y + self.shared(clean, routing)
        y = torch.where(finite[:, None], y, torch.nan)
        return MoEOutput(y.view_as(x), routing, summarize(routing, self.pool))

    def route(self, x: Tensor, ctx: RoutingContext, exclude: Tensor | None = None) -> Routing:
        """x [T, D] -> the routing after policies. exclude [T, E] bool: experts a token may not choose."""
        if exclude is not None:
            ctx = ctx.replace(exclude=exclude)
        routing = self.router(x, ctx)
        for policy in self.spec.policy:
            routing = policy(routing, self.router, ctx)
        return routing

    def start(self, x: Tensor, routing: Routing, ctx: RoutingContext) -> Handle:
        """Begins the routed work on x [T, D]: rows are gathered to their experts."""
        rows = self.dispatch.gather(x, routing) if self.spec.backend == "grouped" else None
        return Handle(x, routing, ctx, rows)

    def finish(self, handle: Handle) -> Tensor:
        """[T, D] the sum of routed and null experts; zero rows for padding."""
        if handle.rows is None:
            y = reference.mixture(handle.x, handle.routing, self.experts, handle.ctx)
        else:
            out = self.experts(handle.rows, handle.ctx)
            y = self.dispatch.combine(self.experts.weigh(out, handle.rows.gate), handle.rows, len(handle.x))
        null = self.null_experts(handle.x, handle.routing)
        return y if null is None else y + null.to(y.dtype)

    def shared(self, x: Tensor, routing: Routing) -> Tensor:
        """[T, D] what the shared experts answer; zero rows for padding."""
        assert self.shared_experts is not None
        return torch.where(routing.mask[:, None], self.shared_experts(x, routing.shared), 0)

    def _flat(self, x: Tensor, ctx: RoutingContext) -> Tensor:
        rows, length = ctx.shape
        if x.shape[-1] != self.dim or x.numel() != rows * length * self.dim:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected [{rows}, {length}, {self.dim}] or "
                f"[{rows * length}, {self.dim}] as ctx.shape and the layer's width say"
            )
        if not x.is_floating_point():
            raise TypeError(f"x: got dtype {x.dtype}, expected a floating-point tensor")
        if x.device != ctx.mask.device:
            raise ValueError(f"x: on {x.device}, but ctx.mask is on {ctx.mask.device}")
        return x.reshape(rows * length, self.dim)

    def _finite(self, x: Tensor) -> Tensor:
        """[T] bool: 0 * x is 0 for finite values and NaN for others, and one sum tells."""
        finite = (x.detach() * 0).sum(-1) == 0
        if self.check and not bool(finite.all()):
            bad = (~finite).nonzero().flatten().tolist()
            raise NonFiniteError(f"x: {len(bad)} of {len(x)} tokens hold NaN or infinity, the first at row {bad[0]}")
        return finite
