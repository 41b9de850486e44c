"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values are read from one small
latent per token, and the cache holds that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.backbone.attention.base import Attention, AttentionSpec, start_
from zoo.backbone.attention.product import attend
from zoo.backbone.context import BlockContext
from zoo.backbone.mask import Visible
from zoo.backbone.norm import RMSNorm
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class LatentSpec(AttentionSpec):
    """Softmax attention over keys and values that are expanded from a latent; a part of each key that carries the
    position is shared by all heads.

    heads       query heads
    kv_rank     size of the latent of keys and values
    nope_dim    dimensions of a head's query and key without position
    rope_dim    dimensions with rotary position, behind them
    value_dim   dimensions of a head's value
    q_rank      size of the latent of queries; None for queries read from the state directly
    bias        biases on the maps to the latents and on the output map
    scale       factor on query-key products; None for 1 / sqrt(nope_dim + rope_dim); yarn's mscale_all_dim adds to it
    rank_scale  queries times sqrt(width / q_rank), the normed latent of keys and values times sqrt(width / kv_rank)
                (LongCat-Flash, arXiv 2509.01322, eq. 6-7)
    latent_eps  epsilon of the norms of the latents
    """

    heads: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    q_rank: int | None = None
    bias: bool = False
    scale: float | None = None
    rank_scale: bool = False
    latent_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("heads", "kv_rank", "nope_dim", "value_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.rope_dim < 0 or self.rope_dim % 2:
            raise ValueError(f"rope_dim: got {self.rope_dim}, expected an even number, 0 or more")
        if self.q_rank is not None and self.q_rank < 1:
            raise ValueError(f"q_rank: got {self.q_rank}, expected 1 or more, or none")
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"scale: got {self.scale}, expected more than 0, or none")
        if self.latent_eps <= 0:
            raise ValueError(f"latent_eps: got {self.latent_eps}, expected more than 0")

    def rotary(self, dim: int) -> int:
        return self.rope_dim

    @property
    def key_dim(self) -> int:
        """Dimensions of a head's query and key."""
        return self.nope_dim + self.rope_dim

    def cost(self, dim: int, length: float) -> Cost:
        """With keys and values expanded, each once."""
        queries, values = self.heads * self.key_dim, self.heads * self.value_dim
        if self.q_rank is None:
            maps = linear_cost(dim, queries)
        else:
            norm = Cost(self.q_rank, self.q_rank, 0)
            maps = linear_cost(dim, self.q_rank, self.bias) + norm + linear_cost(self.q_rank, queries)
        maps = maps + linear_cost(dim, self.kv_rank + self.rope_dim, self.bias) + Cost(self.kv_rank, self.kv_rank, 0)
        maps = maps + linear_cost(self.kv_rank, self.heads * self.nope_dim + values)
        maps = maps + linear_cost(values, dim, self.bias)
        return maps + Cost(0, 0, 2 * (queries + values) * length)

    def build(self, dim: int, index: int, eps: float) -> Latent:
        return Latent(self, dim, index)


class Latent(Attention):
    """See LatentSpec. The cache holds latent and turned key [B, 1, L, kv_rank + rope_dim]."""

    read_directly = frozenset({"kv_up"})

    def __init__(self, spec: LatentSpec, dim: int, index: int) -> None:
        super().__init__()
        self.spec, self.index, self.rotary, self.window = spec, index, spec.rope_dim, None
        self.scale = spec.key_dim**-0.5 if spec.scale is None else spec.scale
        queries = spec.heads * spec.key_dim
        if spec.q_rank is None:
            self.q = nn.Linear(dim, queries, bias=False)
        else:
            self.q_down = nn.Linear(dim, spec.q_rank, bias=spec.bias)
            self.q_norm = RMSNorm(spec.q_rank, eps=spec.latent_eps)
            self.q_up = nn.Linear(spec.q_rank, queries, bias=False)
        self.kv_down = nn.Linear(dim, spec.kv_rank + spec.rope_dim, bias=spec.bias)
        self.kv_norm = RMSNorm(spec.kv_rank, eps=spec.latent_eps)
        self.kv_up = nn.Linear(spec.kv_rank, spec.heads * (spec.nope_dim + spec.value_dim), bias=False)
        self.o = nn.Linear(spec.heads * spec.value_dim, dim, bias=spec.bias)
        for module in self.children():
            if isinstance(module, nn.Linear):
                start_(module)
        ranks = (spec.q_rank or dim, spec.kv_rank)
        self.q_factor, self.kv_factor = ((dim / rank) ** 0.5 if spec.rank_scale else 1.0 for rank in ranks)

    def forward(self, x: Tensor, ctx: BlockContext) -> Tensor:
        query, memory = self._query(x, ctx), self._memory(x, ctx)
        if ctx.cache is not None:
            (memory,) = ctx.cache.update(self.index, memory)
            memory = memory.to(query.dtype)
        scale = self.scale * (ctx.rope[self.rotary].sharpness if self.rotary else 1.0)
        absorbed = ctx.cache is not None and self._absorbing_is_cheaper(query.shape[2], memory.shape[2])
        product = self.absorbed if absorbed else self.expanded
        out = product(query, memory, ctx.visible[self.window], scale)
        return self.o(out.transpose(1, 2).flatten(2))

    def expanded(self, query: Tensor, memory: Tensor, see: Visible, scale: float) -> Tensor:
        """query [B, H, S, key_dim], memory [B, 1, L, kv_rank + rope_dim] -> [B, H, S, value_dim], each head's keys and
        values written out."""
        spec = self.spec
        latent, turned = memory[:, 0].split([spec.kv_rank, spec.rope_dim], dim=-1)
        both = self.kv_up(latent).unflatten(-1, (spec.heads, -1)).transpose(1, 2)
        key, value = both.split([spec.nope_dim, spec.value_dim], dim=-1)
        key = torch.cat([key, turned[:, None].expand(-1, spec.heads, -1, -1)], dim=-1)
        return attend(query, key, value, see, scale, None)

    def absorbed(self, query: Tensor, memory: Tensor, see: Visible, scale: float) -> Tensor:
        """The same with the expansion moved to the other side of the products: latents are keys and values of one head
        that all queries share."""
        spec = self.spec
        weight = self.kv_up.weight.to(query.dtype).view(spec.heads, -1, spec.kv_rank)
        to_key, to_value = weight.split([spec.nope_dim, spec.value_dim], dim=1)
        plain, turned = query.split([spec.nope_dim, spec.rope_dim], dim=-1)
        query = torch.cat([plain @ to_key, turned], dim=-1)
        out = attend(query, memory, memory, see, scale, None)[..., : spec.kv_rank]
        return out @ to_value.transpose(1, 2)

    def _absorbing_is_cheaper(self, new: int, length: int) -> bool:
        """Multiplications per head of the two forms, for `new` queries over `length` keys."""
        spec = self.spec
        maps = spec.kv_rank * (spec.nope_dim + spec.value_dim)
        expanded = length * maps + new * length * (spec.key_dim + spec.value_dim)
        return new * maps + 2 * new * length * (spec.kv_rank + spec.rope_dim) < expanded

    def _query(self, x: Tensor, ctx: BlockContext) -> Tensor:
        """[B, H, S, key_dim], turned."""
        flat = self.q(x) if self.spec.q_rank is None else self.q_up(self.q_norm(self.q_down(x)))
        flat = flat if self.q_factor == 1 else flat * self.q_factor
        query = flat.unflatten(-1, (self.spec.heads, -1)).transpose(1, 2)
        if not self.rotary:
            return query
        plain, turned = query.split([self.spec.nope_dim, self.rotary], dim=-1)
        return torch.cat([plain, ctx.rope[self.rotary].turn(turned)], dim=-1)

    def _memory(self, x: Tensor, ctx: BlockContext) -> Tensor:
        """[B, 1, S, kv_rank + rope_dim]: the normed latent, and the key that carries the position."""
        down = self.kv_down(x)[:, None]
        latent, turned = down.split([self.spec.kv_rank, self.rotary], dim=-1)
        latent = self.kv_norm(latent)
        latent = latent if self.kv_factor == 1 else latent * self.kv_factor
        return torch.cat([latent, ctx.rope[self.rotary].turn(turned)], dim=-1) if self.rotary else latent
