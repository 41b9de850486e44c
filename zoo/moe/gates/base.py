"""The contract of gates: `gate(x [T, D], ctx) -> Signal`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modalities.base import Tokens
from modalities.precise import Precise
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import Cost

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Signal(NamedTuple):
    """What a gate says about the tokens of a flat batch.

    raw        [T, E + Ns]  noise-free logits, shared columns last: what losses, traces and policies see
    selection  [T, E]       the logits that experts are chosen by; `raw` but for noise
    weighing   [T, E + Ns]  the logits that weights are computed from; `raw` but for noise that weights see too
    carry      name -> tensor [T, ...] for the gates of later layers, over depth only
    update     name -> tensor, sums over the real tokens for running statistics, see Router.update
    """

    raw: Tensor
    selection: Tensor
    weighing: Tensor
    carry: Mapping[str, Tensor] = NOTHING
    update: Mapping[str, Tensor] = NOTHING


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """The description of a gate; `type` names it, linear where it is left out."""

    kind: ClassVar[str] = "gate"
    default_type: ClassVar[str] = "linear"

    @property
    def carried(self) -> bool:
        """Whether it reads what a gate of its kind in the MoE layer before left in the carry."""
        return False

    @property
    def core(self) -> GateSpec:
        """What gives the logits: itself, or what it wraps."""
        return self

    @property
    def scope(self) -> Literal["token", "sequence"]:
        """What the logits of a token depend on: itself alone, or its sequence."""
        return "token"

    @property
    def noise(self) -> bool:
        """Whether training draws random numbers."""
        return False

    def follow(self, previous: GateSpec | None, previous_pool: Pool | None, pool: Pool) -> None:
        """Raises ValueError("key: ...") where it cannot stand in the MoE layer after one with that gate and that pool
        (None in the first MoE layer, and the gate where that layer's router has none)."""
        if not self.carried or previous_pool is None:
            return
        if previous is None or type(previous.core) is not type(self.core):
            raise ValueError(
                "type: it reads what its kind leaves in the MoE layer before; expected one of the same type there"
            )
        if previous_pool.columns != pool.columns:
            raise ValueError(
                f"type: it looks back at a layer of {previous_pool.columns} experts from one of {pool.columns}; "
                "expected equal numbers"
            )

    def cost(self, dim: int, pool: Pool) -> Cost:
        """Parameters and operations for one token, in the first MoE layer."""
        raise NotImplementedError

    def follow_cost(self, dim: int, pool: Pool) -> Cost:
        """What is added to `cost` (less than nothing for shared parts) in the MoE layers after the first."""
        return Cost()

    def build(self, dim: int, pool: Pool) -> Gate:
        """The gate of a layer of width `dim`."""
        raise NotImplementedError


class Gate(Precise):
    """Gives the raw logits of a router. Its parameters and state stay float32 when the model is cast to bfloat16."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor, ctx: RoutingContext) -> Signal:
        """x [T, D] clean (finite) inputs, whatever autocast says in float32 at least."""
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.signal(x, ctx)
        return self.signal(x, ctx)

    def signal(self, x: Tensor, ctx: RoutingContext) -> Signal:
        """What `forward` gives, without autocast; the logits, noise-free, where a gate does not say otherwise."""
        raw = self.logits(x, ctx)
        return Signal(raw, raw[:, : self.pool.experts] if self.pool.shared else raw, raw)

    def logits(self, x: Tensor, ctx: RoutingContext) -> Tensor:
        """[T, D] -> raw logits [T, E + Ns]."""
        raise NotImplementedError

    @property
    def core(self) -> Gate:
        """What gives the logits: itself, or what it wraps."""
        return self

    def reset_parameters(self) -> None:
        """Draws the gate anew."""
        raise NotImplementedError

    @property
    def common(self) -> nn.Module | None:
        """What it holds for the gates of later layers too. All of them use it by calling it as a module, so that
        sharding can bring its weights together."""
        return None

    def begin(self, tokens: Tokens, cache: Any) -> dict[str, Tensor]:
        """Once per forward pass of the trunk, before its first block; see Router.begin. Nothing by default."""
        return {}

    def link(self, earlier: Sequence[Gate]) -> None:
        """Once after the trunk is built: the gates of the MoE layers before, in order. Nothing by default."""

    def update(self, totals: Mapping[str, Tensor]) -> None:
        """Once per optimiser step: takes up the summed `Signal.update`. Nothing by default."""


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, D], weight [N, D], bias [N] -> [T, N] in float32 at least."""
    if x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
