"""Feed-forward experts: gated (SwiGLU and its kin, arXiv 2002.05202) and GELU, stacked as transformers stacks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.experts.base import Backend, Experts, ExpertSpec
from zoo.moe.glu import GLUSpec
from zoo.moe.kernels import activations, cpu, triton
from zoo.moe.routing import Routing, RoutingContext, Rows
from zoo.spec import Cost, linear_cost


def _check_hidden(hidden: int) -> None:
    if hidden < 1:
        raise ValueError(f"hidden: got {hidden}, expected 1 or more")


def fan_in_(weight: Tensor) -> None:
    """Normal initialisation with standard deviation 1 / sqrt(inputs), inputs being the last axis."""
    nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)


def zero_(*biases: Tensor | None) -> None:
    """Sets the biases that are there to zero."""
    for bias in biases:
        if bias is not None:
            nn.init.zeros_(bias)


@dataclass(frozen=True, kw_only=True)
class SwiGLUSpec(GLUSpec, ExpertSpec):
    """A gated network: down(silu(gate x) * up x) unless the keys below say otherwise.

    hidden      width of the gated layer
    activation  silu | gelu | gelu_tanh | relu of the gate
    bias        whether the three maps have biases
    alpha       the gate is silu(alpha gate) / alpha; silu only (1.702 in gpt-oss)
    limit       the gate is clamped to at most this before its activation, up to plus or minus it; null for no limit
    offset      added to up (1 in gpt-oss)
    """

    def cost(self, dim: int) -> Cost:
        return self.network_cost(dim, self.hidden)

    def build(self, dim: int, count: int, backend: Backend) -> SwiGLUExperts:
        return SwiGLUExperts(self, dim, count, backend)


class SwiGLUExperts(Experts):
    """gate_up [R, 2F, D] (gate first), down [R, D, F], gate_up_bias [R, 2F], down_bias [R, D]."""

    def __init__(self, spec: SwiGLUSpec, dim: int, count: int, backend: Backend) -> None:
        super().__init__(count, dim, backend)
        self.spec = spec
        self.gate_up = nn.Parameter(torch.empty(count, 2 * spec.hidden, dim))
        self.down = nn.Parameter(torch.empty(count, dim, spec.hidden))
        self.gate_up_bias = nn.Parameter(torch.zeros(count, 2 * spec.hidden)) if spec.bias else None
        self.down_bias = nn.Parameter(torch.zeros(count, dim)) if spec.bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all experts anew."""
        fan_in_(self.gate_up)
        fan_in_(self.down)
        zero_(self.gate_up_bias, self.down_bias)

    def forward(self, rows: Rows, ctx: RoutingContext) -> Tensor:
        inner = _add_bias(self.linear(rows.x, self.gate_up, rows.counts), self.gate_up_bias, rows)
        return _add_bias(self.linear(self.spec.gated(inner), self.down, rows.counts), self.down_bias, rows)

    def fuses(self, x: Tensor) -> bool:
        return self.spec.plain and triton.available(x.device) if self.backend == "triton" else _on_cpu(x)

    def mixture(self, x: Tensor, routing: Routing, *, recompute: bool) -> Tensor:
        if self.backend == "triton":
            return triton.swiglu_mixture(x, self.gate_up, self.down, routing.expert, routing.gate, recompute=recompute)
        spec = self.spec
        return cpu.mixture(
            x,
            self.gate_up,
            self.down,
            routing.expert,
            routing.gate,
            activations.gated(spec.activation, spec.alpha, spec.limit, spec.offset),
            up_bias=self.gate_up_bias,
            down_bias=self.down_bias,
            recompute=recompute,
        )


@dataclass(frozen=True, kw_only=True)
class GELUSpec(ExpertSpec):
    """down(gelu(up x)), with biases where asked (Switch, DeepSpeed-MoE, vision experts).

    hidden       width of the inner layer
    bias         whether both maps have a bias
    approximate  none (exact) or tanh
    """

    hidden: int
    bias: bool = False
    approximate: Literal["none", "tanh"] = "none"

    def __post_init__(self) -> None:
        _check_hidden(self.hidden)

    def cost(self, dim: int) -> Cost:
        return linear_cost(dim, self.hidden, self.bias) + linear_cost(self.hidden, dim, self.bias)

    def build(self, dim: int, count: int, backend: Backend) -> GELUExperts:
        return GELUExperts(self, dim, count, backend)


class GELUExperts(Experts):
    """up [R, F, D], down [R, D, F], up_bias [R, F], down_bias [R, D]."""

    def __init__(self, spec: GELUSpec, dim: int, count: int, backend: Backend) -> None:
        super().__init__(count, dim, backend)
        self.approximate = spec.approximate
        self.up = nn.Parameter(torch.empty(count, spec.hidden, dim))
        self.down = nn.Parameter(torch.empty(count, dim, spec.hidden))
        self.up_bias = nn.Parameter(torch.zeros(count, spec.hidden)) if spec.bias else None
        self.down_bias = nn.Parameter(torch.zeros(count, dim)) if spec.bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all experts anew."""
        fan_in_(self.up)
        fan_in_(self.down)
        zero_(self.up_bias, self.down_bias)

    def forward(self, rows: Rows, ctx: RoutingContext) -> Tensor:
        hidden = _add_bias(self.linear(rows.x, self.up, rows.counts), self.up_bias, rows)
        hidden = F.gelu(hidden, approximate=self.approximate)
        return _add_bias(self.linear(hidden, self.down, rows.counts), self.down_bias, rows)

    def fuses(self, x: Tensor) -> bool:
        return self.backend == "fused" and _on_cpu(x)

    def mixture(self, x: Tensor, routing: Routing, *, recompute: bool) -> Tensor:
        return cpu.mixture(
            x,
            self.up,
            self.down,
            routing.expert,
            routing.gate,
            activations.elementwise("gelu" if self.approximate == "none" else "gelu_tanh"),
            up_bias=self.up_bias,
            down_bias=self.down_bias,
            recompute=recompute,
        )


def _on_cpu(x: Tensor) -> bool:
    """The fused CPU kernel reads counts on the host, which a compiled graph may not."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _add_bias(out: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    """Each row gets its expert's bias; rows behind sum(counts) get none."""
    if bias is None:
        return out
    ends = rows.counts.cumsum(0)
    expert = torch.searchsorted(ends, torch.arange(len(out), device=out.device), right=True)
    padded = torch.cat([bias, torch.zeros_like(bias[:1])])
    return out + padded[expert].to(out.dtype)
