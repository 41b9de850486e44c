"""The MoE layer: `route`, `start`, `shared`, `finish`, and `forward` that composes them.

    x -> route -> policies -> start (gather rows) -> experts -> finish (combine, null experts) -> + shared(x)

Blocks that overlap work, or whose router, routed and shared experts read different states, call the pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.moe.experts.null import NullExperts
from zoo.moe.experts.shared import SharedExperts
from zoo.moe.kernels import reference
from zoo.moe.routing import Routing, RoutingContext, Rows
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats


@dataclass(frozen=True)
class Handle:
    """Routed work under way: what `start` began and `finish` needs."""

    x: Tensor
    sent: Tensor
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
        self.out_bias = nn.Parameter(torch.zeros(dim)) if spec.out_bias else None
        self.dispatch = spec.dispatch.build(self.pool)

    def forward(self, x: Tensor, ctx: RoutingContext) -> MoEOutput:
        """x [T, D] or [B, S, D] with T = B * S as ctx says -> MoEOutput with y of x's shape."""
        flat = self._flat(x, ctx)
        finite = self._finite(flat)
        clean = flat
        if finite is not None:
            clean = torch.where(finite[:, None], flat, 0)
            ctx = ctx.replace(mask=ctx.mask & finite)
        routing = self.route(clean, ctx)
        y = self.finish(self.start(clean, routing, ctx))
        if self.shared_experts is not None:
            y = y + self.shared(clean, routing)
        if finite is not None:
            y = torch.where(finite[:, None], y, torch.nan)
        return MoEOutput(y.view_as(x), routing, Stats(routing, self.pool))

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
        sent = self.experts.before(self._scaled(x))
        whole = self.spec.backend == "reference" or self._fuses(sent)
        return Handle(x, sent, routing, ctx, None if whole else self.dispatch.gather(sent, routing))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.spec.input_scale == 1 else x * self.spec.input_scale

    def _fuses(self, x: Tensor) -> bool:
        """Whether one kernel does gather, experts and combine: nothing is left for the dispatch to do then."""
        backend = self.spec.backend
        fuses = backend in ("fused", "triton") and self.dispatch.local and self.experts.fuses(x)
        if backend == "triton" and not fuses:
            kind = type(self.experts).__name__
            raise ValueError(f"backend: triton has no kernel for {kind} on {x.device}; expected backend: fused")
        return fuses

    def finish(self, handle: Handle) -> Tensor:
        """[T, D] the sum of routed and null experts; zero rows for padding."""
        if handle.rows is not None:
            out = self._compute(handle.rows, handle.ctx)
            y = self.dispatch.combine(self.experts.weigh(out, handle.rows.gate), handle.rows, len(handle.x))
        elif self.spec.backend == "reference":
            y = reference.mixture(handle.sent, handle.routing, self.experts, handle.ctx)
        else:
            y = self.experts.mixture(handle.sent, handle.routing, recompute=self.spec.recompute)
        y = self.null_experts(self.experts.after(y), self._scaled(handle.x), handle.routing)
        return y if self.out_bias is None else y + handle.routing.mask[:, None] * self.out_bias.to(y.dtype)

    def _compute(self, rows: Rows, ctx: RoutingContext) -> Tensor:
        if self.spec.recompute and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(self.experts, rows, ctx, use_reentrant=False))
        return cast(Tensor, self.experts(rows, ctx))

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

    def _finite(self, x: Tensor) -> Tensor | None:
        """[T] bool, or None where all are finite and asking costs nothing (a CPU, eager): one sum over x then tells.
        0 * x is 0 for finite values and NaN for others."""
        asked = not (x.is_cuda or torch.compiler.is_compiling())
        x = x.detach() if x.requires_grad else x
        if asked and math.isfinite(x.sum().item()):
            return None
        finite = (x * 0).sum(-1) == 0
        if self.check and not bool(finite.all()):
            bad = (~finite).nonzero().flatten().tolist()
            raise NonFiniteError(f"x: {len(bad)} of {len(x)} tokens hold NaN or infinity, the first at row {bad[0]}")
        return finite
