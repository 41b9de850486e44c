"""Grouped-query attention (arXiv 2305.13245) with its variants in open models: windows, sinks, norms of q and k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.backbone.attention.base import Attention, AttentionSpec, start_
from zoo.backbone.attention.product import attend
from zoo.backbone.context import BlockContext
from zoo.backbone.norm import RMSNorm
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class GroupedQuerySpec(AttentionSpec):
    """Softmax attention whose keys and values are shared by groups of query heads.

    heads          query heads
    kv_heads       key and value heads, each shared by heads / kv_heads query heads; None for as many as heads
    head_dim       size of a head; None for width / heads
    qk_norm        RMSNorm over queries and keys
    bias           biases on query, key and value maps
    out_bias       bias on the output map
    qk_norm_over   what one norm spans: each head, or all heads together (OLMoE, arXiv 2409.02060)
    qk_norm_place  before or after rotation
    window         a query sees the keys of this many positions up to its own; None for all before it
    sinks          a learned logit per head takes its share of the softmax and gives nothing (arXiv 2309.17453)
    partial        share of a head's dimensions that rotary positions turn, its first ones; 0 for no positions
    scale          factor on query-key products; None for 1 / sqrt(head_dim)
    clip           queries, keys and values are clamped to +-clip before rotation; None for no clamp
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool = False
    bias: bool = False
    out_bias: bool = False
    qk_norm_over: Literal["head", "all"] = "head"
    qk_norm_place: Literal["before", "after"] = "before"
    window: int | None = None
    sinks: bool = False
    partial: float = 1.0
    scale: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads: got {self.heads}, expected 1 or more")
        if self.groups < 1:
            raise ValueError(f"kv_heads: got {self.kv_heads}, expected 1 or more")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim: got {self.head_dim}, expected 1 or more")
        if self.heads % self.groups:
            raise ValueError(f"kv_heads: {self.heads} query heads do not divide over {self.groups} key heads")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: got {self.window}, expected 1 or more, or none")
        if not 0 <= self.partial <= 1:
            raise ValueError(f"partial: got {self.partial}, expected 0..1")
        for name in ("scale", "clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: got {value}, expected more than 0, or none")
        for name, value in (("qk_norm_over", "head"), ("qk_norm_place", "before")):
            if getattr(self, name) != value and not self.qk_norm:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, which needs qk_norm: true")
        if self.qk_norm_over == "all" and self.qk_norm_place == "after":
            raise ValueError("qk_norm_place: got 'after', expected 'before' where one norm spans all heads")

    @property
    def groups(self) -> int:
        """Key and value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def size(self, dim: int) -> int:
        """The head size in a trunk of width `dim`. Raises ValueError where the width does not divide."""
        if self.head_dim is not None:
            return self.head_dim
        if dim % self.heads:
            raise ValueError(f"heads: width {dim} does not divide into {self.heads} heads; set head_dim")
        return dim // self.heads

    def check(self, dim: int) -> None:
        size, turned = self.size(dim), self.rotary(dim)
        if turned % 2:
            got = f"head_dim: got {size}" if self.partial == 1 else f"partial: turns {turned} of {size} dimensions"
            raise ValueError(f"{got}, expected an even number for rotary positions")

    def rotary(self, dim: int) -> int:
        return int(self.size(dim) * self.partial)

    def cost(self, dim: int, length: float) -> Cost:
        size = self.size(dim)
        maps = linear_cost(dim, (self.heads + 2 * self.groups) * size, self.bias)
        maps = maps + linear_cost(self.heads * size, dim, self.out_bias)
        norms = (self.heads + self.groups if self.qk_norm_over == "all" else 2) * size if self.qk_norm else 0
        more = norms + (self.heads if self.sinks else 0)
        seen = length if self.window is None else min(length, self.window)
        return maps + Cost(more, more, 4 * self.heads * size * seen)

    def build(self, dim: int, index: int, eps: float) -> GroupedQuery:
        return GroupedQuery(self, dim, index, eps)


class GroupedQuery(Attention):
    """q, k, v, o maps around scaled dot products. See GroupedQuerySpec."""

    def __init__(self, spec: GroupedQuerySpec, dim: int, index: int, eps: float) -> None:
        super().__init__()
        self.spec, self.index, self.size = spec, index, spec.size(dim)
        self.rotary, self.window = spec.rotary(dim), spec.window
        self.scale = self.size**-0.5 if spec.scale is None else spec.scale
        queries, keys = spec.heads * self.size, spec.groups * self.size
        self.q = nn.Linear(dim, queries, bias=spec.bias)
        self.k = nn.Linear(dim, keys, bias=spec.bias)
        self.v = nn.Linear(dim, keys, bias=spec.bias)
        self.o = nn.Linear(queries, dim, bias=spec.out_bias)
        for linear in (self.q, self.k, self.v, self.o):
            start_(linear)
        wide = spec.qk_norm_over == "all"
        self.q_norm = RMSNorm(queries if wide else self.size, eps=eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(keys if wide else self.size, eps=eps) if spec.qk_norm else None
        self.sinks = nn.Parameter(torch.zeros(spec.heads)) if spec.sinks else None

    def forward(self, x: Tensor, ctx: BlockContext) -> Tensor:
        query = self._turned(self.q(x), self.q_norm, ctx)
        key = self._turned(self.k(x), self.k_norm, ctx)
        value = self._split(self._clipped(self.v(x)))
        if ctx.cache is not None:
            key, value = ctx.cache.update(self.index, key, value)
        out = attend(query, key, value.to(query.dtype), ctx.visible[self.window], self.scale, self.sinks)
        return self.o(out.transpose(1, 2).flatten(2))

    def _turned(self, x: Tensor, norm: RMSNorm | None, ctx: BlockContext) -> Tensor:
        """Queries or keys [B, S, H * size] normed, clamped, split and turned: [B, H, S, size]."""
        place = None if norm is None else "all" if self.spec.qk_norm_over == "all" else self.spec.qk_norm_place
        if norm is not None and place == "all":
            x = norm(x)
        x = self._split(x if place == "before" else self._clipped(x))
        if norm is not None and place == "before":
            x = self._clipped(norm(x))
        if self.rotary:
            x = ctx.rope[self.rotary].turn(x)
        return norm(x) if norm is not None and place == "after" else x

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.spec.clip is None else x.clamp(-self.spec.clip, self.spec.clip)

    def _split(self, x: Tensor) -> Tensor:
        """[B, S, H * size] -> [B, H, S, size]."""
        rows, length, width = x.shape
        return x.reshape(rows, length, width // self.size, self.size).transpose(1, 2)
