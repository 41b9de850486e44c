"""Attention whose heads are experts: a head attends among the tokens it serves (SMHA of Union of Experts, arXiv
2503.02495)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from zoo.backbone.attention.base import Attention, AttentionSpec
from zoo.backbone.attention.product import attend
from zoo.backbone.context import BlockContext
from zoo.backbone.inner import InnerMoE, check_router
from zoo.backbone.mask import Visible
from zoo.backbone.rope import Rotation
from zoo.moe.balance.base import BalanceSpec
from zoo.moe.experts.base import Backend, Experts, ExpertSpec
from zoo.moe.experts.ffn import fan_in_, zero_
from zoo.moe.record import LayerRecord
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routing import Routing
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class SelectiveSpec(AttentionSpec):
    """Multi-head attention with a router between tokens and heads: sum_h gate_h softmax(Q_h K_h^T / sqrt(d)) V_h Wo_h.

    Queries, keys and values of a head are those of the tokens it serves, at their own positions; other tokens neither
    ask nor are seen there. With every head serving every token at weight 1 it is multi-head attention.

    heads         number of heads, the router's experts
    router        how tokens and heads find each other: expert_choice where heads take tokens (as published), top_k
                  where tokens take heads
    head_dim      size of a head; None for width / heads
    bias          biases on query, key and value maps
    out_bias      bias on the sum over heads, for every real token
    balance       losses and bias updates that keep heads in use
    allow_future  permits a router that looks at later tokens in a causal model
    """

    heads: int
    router: RouterSpec
    head_dim: int | None = None
    bias: bool = False
    out_bias: bool = False
    balance: tuple[BalanceSpec, ...] = ()
    allow_future: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads: got {self.heads}, expected 1 or more")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim: got {self.head_dim}, expected 1 or more")
        check_router(self.router)
        self.layer(1)

    def check(self, dim: int) -> None:
        if self.head_dim is None and dim % self.heads:
            raise ValueError(f"heads: width {dim} does not divide into {self.heads} heads; set head_dim")
        if self.rotary(dim) % 2:
            raise ValueError(f"head_dim: got {self.rotary(dim)}, expected an even number for rotary positions")

    def rotary(self, dim: int) -> int:
        return dim // self.heads if self.head_dim is None else self.head_dim

    def layer(self, size: int) -> MoESpec:
        """The heads as an MoE layer: what balance, traces and laws see."""
        return MoESpec(
            routed=self.heads,
            experts=HeadSpec(size=size, bias=self.bias),
            router=self.router,
            out_bias=self.out_bias,
            balance=self.balance,
            backend="grouped",
            allow_future=self.allow_future,
        )

    def cost(self, dim: int, length: float) -> Cost:
        size = self.rotary(dim)
        layer = self.layer(size)
        used = self.router.mean_k(layer.pool)
        products = 4 * size * length * used * used / self.heads  # a head's queries see the keys of its tokens alone
        return layer.cost(dim) + Cost(0, 0, products)

    def build(self, dim: int, index: int, eps: float) -> Selective:
        return Selective(self, dim, index)


@dataclass(frozen=True, kw_only=True)
class HeadSpec(ExpertSpec):
    """The maps of one head.

    size  of the head
    bias  on its query, key and value maps
    """

    size: int
    bias: bool

    def cost(self, dim: int) -> Cost:
        return linear_cost(dim, 3 * self.size, self.bias) + linear_cost(self.size, dim)

    def build(self, dim: int, count: int, backend: Backend) -> Heads:
        return Heads(self, dim, count, backend)


class Heads(Experts):
    """qkv [H, 3, d, D], qkv_bias [H, 3, d], o [H, D, d]. Attention stands between them, so they are called apart."""

    def __init__(self, spec: HeadSpec, dim: int, count: int, backend: Backend) -> None:
        super().__init__(count, dim, backend)
        self.size = spec.size
        self.qkv = nn.Parameter(torch.empty(count, 3, spec.size, dim))
        self.qkv_bias = nn.Parameter(torch.zeros(count, 3, spec.size)) if spec.bias else None
        self.o = nn.Parameter(torch.empty(count, dim, spec.size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all maps anew, the output maps as one of all heads would be drawn."""
        fan_in_(self.qkv)
        nn.init.normal_(self.o, std=(self.count * self.size) ** -0.5)
        zero_(self.qkv_bias)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [B, H or 1, L, D], each head's own tokens -> query, key, value [B, H, L, d]."""
        flat = self.qkv.flatten(1, 2).mT  # [H, D, 3 d]
        out = x @ flat if self.qkv_bias is None else x @ flat + self.qkv_bias.flatten(1)[:, None]
        return out.chunk(3, dim=-1)


class Selective(InnerMoE, Attention):
    """See SelectiveSpec. An inner MoE layer to balance, traces and laws, an attention module to the cache, which holds
    the keys of all heads with a last channel that says whether the head serves the token."""

    def __init__(self, spec: SelectiveSpec, dim: int, index: int) -> None:
        size = spec.rotary(dim)
        super().__init__(spec.layer(size), dim)
        self.size, self.index, self.rotary, self.window = size, index, size, None

    def forward(self, x: Tensor, ctx: BlockContext) -> Tensor:  # type: ignore[override]
        """x [B, S, D] -> [B, S, D]."""
        routing_ctx = self.context()
        routing = self.route(x.flatten(0, 1), routing_ctx)
        record = LayerRecord(
            routing, Stats(routing, self.pool), routing_ctx.shape, routing_ctx.document, routing_ctx.modality,
            weight=routing_ctx.weight,
        )  # fmt: skip
        self.heard.append(record)
        serves, gate = self._table(routing, x)
        gathers = ctx.cache is None and not torch.compiler.is_compiling()
        y = (self._gathered if gathers else self._whole)(x, serves, gate, ctx)
        if self.out_bias is None:
            return y
        return y + routing.mask.view(*x.shape[:2], 1) * self.out_bias.to(y.dtype)

    @property
    def maps(self) -> Heads:
        """The heads' maps."""
        return cast(Heads, self.experts)

    def _table(self, routing: Routing, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, S] whether a head serves a token, and with which weight."""
        heads = self.pool.experts
        table = routing.gate.new_zeros(len(routing.gate), heads + 1)
        serves = table.scatter(1, routing.expert, 1)[:, :heads] > 0
        gate = table.scatter(1, routing.expert, routing.gate)[:, :heads].to(x.dtype)
        return (serves.view(*x.shape[:2], heads).transpose(1, 2), gate.view(*x.shape[:2], heads).transpose(1, 2))

    def _gathered(self, x: Tensor, serves: Tensor, gate: Tensor, ctx: BlockContext) -> Tensor:
        """Each head on its tokens alone, in their order, as many as the busiest head has."""
        count = serves.sum(-1)
        length = int(count.max()) if count.numel() else 0
        index = (~serves).byte().argsort(dim=-1, stable=True)[..., :length]  # [B, H, L], served tokens first
        real = torch.arange(length, device=x.device) < count[..., None]
        row = torch.arange(len(x), device=x.device)[:, None, None]
        query, key, value = self.maps.project(x[row, index])
        rope = _at(ctx.rope[self.rotary], index)
        see = _among(ctx.visible[None], index, real)
        out = attend(rope.turn(query), rope.turn(key), value, see, self.size**-0.5 * rope.sharpness, None)
        out = (out * gate.gather(2, index)[..., None]) @ self.maps.o.mT
        place = (row * x.shape[1] + index).flatten()
        return torch.zeros_like(x).flatten(0, 1).index_add(0, place, out.flatten(0, 2)).view_as(x)

    def _whole(self, x: Tensor, serves: Tensor, gate: Tensor, ctx: BlockContext) -> Tensor:
        """All heads on all tokens, those they do not serve hidden: for decoding, where tokens are few."""
        query, key, value = self.maps.project(x[:, None])
        rope = ctx.rope[self.rotary]
        query, key = rope.turn(query), rope.turn(key)
        if ctx.cache is not None:
            flagged = torch.cat([key, serves[..., None].to(key.dtype)], dim=-1)
            flagged, value = ctx.cache.update(self.index, flagged, value)
            key, serves = flagged[..., :-1].to(query.dtype), flagged[..., -1] > 0.5
        see = _hide(ctx.visible[None], serves, query)
        out = attend(query, key, value.to(query.dtype), see, self.size**-0.5 * rope.sharpness, None)
        return ((out * gate[..., None]) @ self.maps.o.mT).sum(1)


def _at(rope: Rotation, index: Tensor) -> Rotation:
    """The turning of the tokens index [B, H, L] of each head."""

    place = index.transpose(1, 2)[..., None]

    def pick(angle: Tensor) -> Tensor:
        wide = angle.expand(len(index), -1, index.shape[1], -1)
        return wide.gather(1, place.expand(-1, -1, -1, angle.shape[-1]))

    return dataclasses.replace(rope, cos=pick(rope.cos), sin=pick(rope.sin))


def _among(see: Visible, index: Tensor, real: Tensor) -> Visible:
    """What the tokens index [B, H, L] see of each other; they stand in order, so a causal mask stays one. Places that
    are not real stand last and see themselves."""
    if see.mask is None:
        return Visible(None, causal=True)
    row = torch.arange(len(index), device=index.device)[:, None, None, None]
    mask = see.mask.expand(len(index), -1, -1, -1)[row, 0, index[..., None], index[..., None, :]]
    own = torch.eye(index.shape[-1], dtype=torch.bool, device=index.device)
    return Visible(mask.masked_fill(~(real[..., None, :] | own), -torch.inf))


def _hide(see: Visible, serves: Tensor, query: Tensor) -> Visible:
    """The same without the keys [B, H, L] a head does not serve; every query sees at least itself."""
    new, length = query.shape[2], serves.shape[-1]
    own = torch.arange(length - new, length, device=query.device)[:, None]
    key = torch.arange(length, device=query.device)
    mask = query.new_zeros(1, 1, new, length) if see.mask is None else see.mask
    hidden = ~(serves[..., None, :] | (key == own))
    if see.causal:
        hidden = hidden | (key > own)
    return Visible(mask.masked_fill(hidden, -torch.inf))
