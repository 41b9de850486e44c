"""Latent experts: a group of experts shares its maps into and out of a latent space, each keeps a small core (MoLE and
MoLAE, arXiv 2503.23100)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe.experts.base import Backend, Experts, ExpertSpec
from zoo.moe.experts.ffn import fan_in_
from zoo.moe.routing import RoutingContext, Rows
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class LatentSpec(ExpertSpec):
    """down(silu(gate zg) * up zu) with latents zg = Bg x, zu = Bu x that a group of experts shares.

    A latent is computed once per token and touched group. With one group it is computed before the dispatch, so that
    latents travel and not x.

    hidden  width of the gated layer
    latent  size r of the latent space (the paper takes r = hidden)
    group   experts that share maps; null for all of the layer
    inputs  separate (gate and up have latents of their own, as published) or joint (one latent for both)
    down    kept (each expert has its own map [D, hidden], the paper's first version) or factored (a core [r, hidden],
            then one shared map [D, r] on the gate-weighted sum of the group, its second version)
    larger  permits more parameters than plain experts of this width would have
    """

    hidden: int
    latent: int
    group: int | None = None
    inputs: Literal["separate", "joint"] = "separate"
    down: Literal["kept", "factored"] = "kept"
    larger: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden", "latent", "group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected 1 or more")

    def check(self, count: int) -> None:
        if self.group is not None and count % self.group:
            raise ValueError(f"group: {count} experts do not divide into groups of {self.group}")

    def groups(self, count: int) -> int:
        """How many groups `count` experts form."""
        return count // (self.group or count)

    def core(self, dim: int) -> Cost:
        """What one expert has of its own."""
        out = self.latent if self.down == "factored" else dim
        return linear_cost(self.latent, 2 * self.hidden) + linear_cost(self.hidden, out)

    def common(self, dim: int) -> Cost:
        """What the experts of one group share."""
        maps = (1 if self.inputs == "joint" else 2) + (1 if self.down == "factored" else 0)
        return linear_cost(dim, maps * self.latent)

    def cost(self, dim: int) -> Cost:
        """Of an expert that shares with no other."""
        return self.core(dim) + self.common(dim)

    def layer_cost(self, dim: int, count: int, used: float) -> Cost:
        core, common, groups = self.core(dim), self.common(dim), self.groups(count)
        touched = groups * (1 - _avoided(count, count // groups, used))
        return Cost(
            core.total * count + common.total * groups,
            core.active * used + common.active * touched,
            core.flops * used + common.flops * touched,
        )

    def check_width(self, dim: int, count: int) -> None:
        """Plain experts of this width must be larger, or sharing gains nothing."""
        plain = (linear_cost(dim, 2 * self.hidden) + linear_cost(self.hidden, dim)).total * count
        total = self.layer_cost(dim, count, count).total
        if total >= plain and not self.larger:
            raise ValueError(
                f"latent: {count} experts of latent size {self.latent} hold {total} parameters, plain ones {plain}; "
                "expected a smaller latent or larger groups, or larger: true"
            )

    def build(self, dim: int, count: int, backend: Backend) -> LatentExperts:
        return LatentExperts(self, dim, count, backend)


def _avoided(count: int, size: int, used: float) -> float:
    """The share of sets of `used` out of `count` experts without any of a given `size`; between whole numbers, a
    straight line."""

    def share(k: int) -> float:
        return math.comb(count - size, k) / math.comb(count, k)

    low = math.floor(used)
    high = min(math.ceil(used), count)
    return share(low) + (share(high) - share(low)) * (used - low)


class LatentExperts(Experts):
    """into [G, c r, D] (for the gate, then for up where c is 2), gate and up [R, F, r]; down [R, D, F], or [R, r, F]
    with out_of [G, D, r]."""

    common = frozenset({"into", "out_of"})

    def __init__(self, spec: LatentSpec, dim: int, count: int, backend: Backend) -> None:
        self.factored, self.groups = spec.down == "factored", spec.groups(count)
        super().__init__(count, spec.latent if self.factored and self.groups == 1 else dim, backend)
        self.size, self.joint = count // self.groups, spec.inputs == "joint"
        latents = spec.latent * (1 if self.joint else 2)
        self.into = nn.Parameter(torch.empty(self.groups, latents, dim))
        self.gate = nn.Parameter(torch.empty(count, spec.hidden, spec.latent))
        self.up = nn.Parameter(torch.empty(count, spec.hidden, spec.latent))
        self.down = nn.Parameter(torch.empty(count, spec.latent if self.factored else dim, spec.hidden))
        self.out_of = nn.Parameter(torch.empty(self.groups, dim, spec.latent)) if self.factored else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all maps anew, each by its own fan-in, so that a product of two keeps the variance of a plain map."""
        for weight in (self.into, self.gate, self.up, self.down, self.out_of):
            if weight is not None:
                fan_in_(weight)

    def before(self, x: Tensor) -> Tensor:
        return F.linear(x, self.into[0]) if self.groups == 1 else x

    def forward(self, rows: Rows, ctx: RoutingContext) -> Tensor:
        if self.groups == 1:
            return self._core(rows.x, rows.counts)
        pair, head, counts = self._pairs(rows, ctx.shape[0] * ctx.shape[1])
        latent = self.linear(rows.x.index_select(0, head), self.into, counts).index_select(0, pair)
        out = self._core(latent, rows.counts)
        if self.out_of is None:
            return out
        weighed = out * rows.gate[:, None].to(out.dtype)
        summed = torch.zeros_like(weighed).index_add(0, pair, weighed)
        wide = self.linear(summed, self.out_of, counts).index_select(0, pair)
        first = head.index_select(0, pair) == torch.arange(len(pair), device=pair.device)
        return torch.where(first[:, None], wide, 0)  # the first row of a pair carries its sum

    def _core(self, latent: Tensor, counts: Tensor) -> Tensor:
        """The experts' own maps on the latents [N, c r] of their rows."""
        for_gate, for_up = (latent, latent) if self.joint else latent.chunk(2, dim=-1)
        hidden = F.silu(self.linear(for_gate, self.gate, counts)) * self.linear(for_up, self.up, counts)
        return self.linear(hidden, self.down, counts)

    def _pairs(self, rows: Rows, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of token and group, in order of group: the pair of each row [N], the first row of each pair [N] (0
        behind the last pair), and the pairs of each group [G]. Of fixed size, so nothing is read from the device."""
        slots = len(rows.token)
        place = torch.arange(slots, device=rows.token.device)
        group = torch.searchsorted(rows.counts.cumsum(0), place, right=True) // self.size  # G behind the last row
        key, order = (group * tokens + rows.token).sort(stable=True)
        new = key != torch.cat([key.new_full((1,), -1), key])[:-1]
        number = new.cumsum(0) - 1
        pair = torch.empty_like(order).scatter(0, order, number)
        target = torch.where(new, number, slots)
        head = order.new_zeros(slots + 1).scatter(0, target, order)[:slots]
        counts = rows.counts.new_zeros(self.groups + 1).scatter_add(0, group[order], new.long())
        return pair, head, counts[: self.groups]

    def after(self, y: Tensor) -> Tensor:
        return F.linear(y, self.out_of[0]) if self.out_of is not None and self.groups == 1 else y

    def weigh(self, out: Tensor, gate: Tensor) -> Tensor:
        """Where a group's sum was taken here, gates are in it already."""
        return out if self.factored and self.groups > 1 else super().weigh(out, gate)
