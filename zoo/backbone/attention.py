"""Grouped-query attention (arXiv 2305.13245) with rotary positions and torch's scaled-dot-product kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone.cache import Cache
from zoo.backbone.context import BlockContext
from zoo.backbone.norm import RMSNorm
from zoo.backbone.rope import rotate
from zoo.moe.experts.ffn import fan_in_
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Softmax attention.

    heads     query heads
    kv_heads  key and value heads, each shared by heads / kv_heads query heads; None for as many as heads
    head_dim  size of a head; None for width / heads
    qk_norm   RMSNorm over each query and key head before rotation
    bias      biases on query, key and value maps
    out_bias  bias on the output map
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool = False
    bias: bool = False
    out_bias: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads: got {self.heads}, expected 1 or more")
        if self.groups < 1:
            raise ValueError(f"kv_heads: got {self.kv_heads}, expected 1 or more")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim: got {self.head_dim}, expected 1 or more")
        if self.heads % self.groups:
            raise ValueError(f"kv_heads: {self.heads} query heads do not divide over {self.groups} key heads")

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

    def cost(self, dim: int, length: float) -> Cost:
        """For a token that sees `length` keys."""
        size = self.size(dim)
        maps = linear_cost(dim, (self.heads + 2 * self.groups) * size, self.bias)
        maps = maps + linear_cost(self.heads * size, dim, self.out_bias)
        norms = 2 * size if self.qk_norm else 0
        return maps + Cost(norms, norms, 4 * self.heads * size * length)


class Attention(nn.Module):
    """q, k, v, o maps around scaled_dot_product_attention; `index` is its slot in the cache."""

    def __init__(self, spec: AttentionSpec, dim: int, index: int, eps: float) -> None:
        super().__init__()
        self.spec, self.index, self.size = spec, index, spec.size(dim)
        self.q = nn.Linear(dim, spec.heads * self.size, bias=spec.bias)
        self.k = nn.Linear(dim, spec.groups * self.size, bias=spec.bias)
        self.v = nn.Linear(dim, spec.groups * self.size, bias=spec.bias)
        self.o = nn.Linear(spec.heads * self.size, dim, bias=spec.out_bias)
        self.q_norm = RMSNorm(self.size, eps=eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(self.size, eps=eps) if spec.qk_norm else None
        for linear in (self.q, self.k, self.v, self.o):
            fan_in_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, ctx: BlockContext) -> Tensor:
        """x [B, S, D] -> [B, S, D]."""
        query, key, value = (self._split(linear(x)) for linear in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = (turn.to(x.dtype) for turn in ctx.rope)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        key, value = self._remember(ctx.cache, key, value)
        out = F.scaled_dot_product_attention(
            query, key, value.to(query.dtype), attn_mask=ctx.mask, is_causal=ctx.causal,
            enable_gqa=self.spec.groups != self.spec.heads,
        )  # fmt: skip
        return self.o(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[B, S, H * size] -> [B, H, S, size]."""
        return x.unflatten(-1, (-1, self.size)).transpose(1, 2)

    def _remember(self, cache: Cache | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return (key, value) if cache is None else cache.update(self.index, key, value)
