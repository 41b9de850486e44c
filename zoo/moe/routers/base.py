"""The router contract, and the linear gate most routers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modalities.base import Tokens
from modalities.precise import Precise
from zoo.moe.pool import Pool, Properties
from zoo.moe.routing import Routing, RoutingContext
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """The description of a router; `type` names it."""

    kind: ClassVar[str] = "router"

    def properties(self, pool: Pool) -> Properties:
        """What the router promises over this pool."""
        raise NotImplementedError

    def check(self, pool: Pool) -> None:
        """Raises ValueError("key: ...") where the router cannot choose from this pool."""

    def mean_k(self, pool: Pool) -> float:
        """Slots a token fills on average, at equal scores where the number varies."""
        raise NotImplementedError

    def cost(self, dim: int, pool: Pool) -> Cost:
        """Parameters and operations of the router itself."""
        raise NotImplementedError

    def build(self, dim: int, pool: Pool) -> Router:
        """The router of a layer of width `dim`."""
        raise NotImplementedError


class Router(Precise):
    """Chooses experts: `router(x [T, D], ctx) -> Routing`. Its parameters and state stay float32 when
    the model is cast to bfloat16.

    `weigh` is pure and knows only noise-free logits, so that policies can edit a choice and weigh it anew.
    """

    bias: Tensor | None  # selection bias [E], where the router has one; changed once per optimiser step

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.register_buffer("bias", None)

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        """x [T, D] clean (finite) inputs to a Routing; rows where ctx.mask is False choose nothing."""
        raise NotImplementedError

    def weigh(self, raw: Tensor, expert: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights of a choice: raw [T, E + Ns], expert [T, K] (E = empty) -> gate [T, K], shared [T, Ns] or None."""
        raise NotImplementedError

    def begin(self, tokens: Tokens, cache: Any, layer: int) -> dict[str, Tensor]:
        """Once per forward of the trunk, before its first block, for the MoE layer with this index: what all layers
        find in their carry. Nothing by default. Carry and cache.routes are one namespace for all layers, so a router
        that keeps its own value there puts `layer` into the key (and finds it again by `ctx.layer`)."""
        return {}

    def update(self, totals: Mapping[str, Tensor]) -> None:
        """Once per optimiser step, and only then: changes the running statistics. totals are the sums of
        `Routing.update` over the micro-batches and ranks of the step, in float64. Nothing by default."""


def surely(flag: Tensor) -> bool:
    """Whether all of `flag` hold, where asking costs next to nothing (a CPU, eager); False says nothing."""
    return flag.device.type == "cpu" and not torch.compiler.is_compiling() and bool(flag.all())


def share_of_chosen(raw: Tensor, expert: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
    """Softmax over the chosen experts and the shared columns: raw [T, E + Ns], expert [T, K] -> [T, K], [T, Ns].

    Taken over these columns alone, so that a choice far below the best logit keeps its precision.
    """
    full = expert < pool.experts
    empty = None if surely(full) else ~full
    columns = raw.gather(1, expert if empty is None else expert.clamp(max=pool.experts - 1))
    if empty is not None:
        columns = columns.masked_fill(empty, torch.finfo(raw.dtype).min)  # finite, so a row of them has a gradient
    if pool.shared:
        columns = torch.cat([columns, raw[:, pool.experts :]], dim=-1)
    share, slots = torch.softmax(columns, dim=-1), expert.shape[1]
    chosen = share[:, :slots] if pool.shared else share
    return chosen if empty is None else chosen.masked_fill(empty, 0), share[:, slots:]


@dataclass(frozen=True, kw_only=True)
class LinearGateSpec(RouterSpec):
    """A router whose logits are one linear map of its input.

    jitter     training multiplies the input of selection (not of weights) by U(1 - jitter, 1 + jitter); 0 is off
    init_std   standard deviation of the initial gate weights
    bias       holds a selection bias per expert, added to the scores for selection only (arXiv 2408.15664)
    gate_bias  whether the linear map has a (learned) bias, which logits and so weights see too (gpt-oss)
    """

    jitter: float = 0.0
    init_std: float = 0.02
    bias: bool = False
    gate_bias: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter: got {self.jitter}, expected 0 <= jitter < 1")
        if self.init_std < 0:
            raise ValueError(f"init_std: got {self.init_std}, expected 0 or more")

    def cost(self, dim: int, pool: Pool) -> Cost:
        return linear_cost(dim, pool.columns, self.gate_bias)


class LinearGate(Router):
    """Holds the gate matrix [E + Ns, D], its bias [E + Ns] where it has one, and the selection bias; subclasses choose
    and weigh."""

    def __init__(self, spec: LinearGateSpec, dim: int, pool: Pool) -> None:
        super().__init__(pool)
        self.jitter = spec.jitter
        self.init_std = spec.init_std
        self.weight = nn.Parameter(torch.empty(pool.columns, dim, dtype=torch.float32))
        self.gate_bias = nn.Parameter(torch.zeros(pool.columns, dtype=torch.float32)) if spec.gate_bias else None
        self.register_buffer("bias", torch.zeros(pool.experts, dtype=torch.float32) if spec.bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the gate anew; the biases start at zero."""
        nn.init.normal_(self.weight, std=self.init_std)
        if self.gate_bias is not None:
            nn.init.zeros_(self.gate_bias)

    def logits(self, x: Tensor) -> Tensor:
        """[T, D] -> raw logits [T, E + Ns], in float32 at least whatever autocast says."""
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.logits(x)
        if x.dtype == self.weight.dtype == torch.float32:
            return F.linear(x, self.weight, self.gate_bias)
        dtype = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.gate_bias is None else self.gate_bias.to(dtype)
        return F.linear(x.to(dtype), self.weight.to(dtype), bias)

    def selection_logits(self, x: Tensor, raw: Tensor, ctx: RoutingContext) -> Tensor:
        """[T, E] the logits selection looks at: `raw`, or those of a jittered input in training."""
        if not (self.jitter and ctx.training and ctx.generator is not None):
            return raw[:, : self.pool.experts]
        noise = torch.empty(x.shape, dtype=torch.float32, device=ctx.generator.device)
        noise.uniform_(1 - self.jitter, 1 + self.jitter, generator=ctx.generator)
        return self.logits(x * noise.to(x.device))[:, : self.pool.experts]

    def eligible(self, scores: Tensor, ctx: RoutingContext) -> Tensor:
        """Adds the selection bias and rules out excluded experts (-inf)."""
        if self.bias is not None:
            scores = scores + self.bias
        return scores if ctx.exclude is None else scores.masked_fill(ctx.exclude, -torch.inf)
