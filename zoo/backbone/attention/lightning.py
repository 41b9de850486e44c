"""Lightning attention: linear attention with a decay per head, whose memory is a state of fixed size (arXiv 2401.04658;
MiniMax-01, 2501.08313)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone.attention.base import Attention, AttentionSpec, start_
from zoo.backbone.context import BlockContext
from zoo.backbone.norm import RMSNorm
from zoo.spec import Cost, linear_cost

State = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class LightningSpec(AttentionSpec):
    """y_i = sum of exp(-s (i - j)) (q_i k_j) v_j over the tokens j up to i of its document, q, k and v being
    activated by silu; then a norm over all heads, times sigmoid of a gate. Always causal, without positions: later
    tokens of a bidirectional span are not seen.

    heads       number of heads; head h of H decays by s = 2^(-8 (h + 1) / H), less and less towards the last layer
    head_dim    size of a head; None for width / heads
    depth       attention modules of the trunk, over which the decay falls to nothing
    block       tokens worked on at once; changes no result
    heads_eps   epsilon of the norm over all heads
    """

    heads: int
    head_dim: int | None = None
    depth: int
    block: int = 256
    heads_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("heads", "depth", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim: got {self.head_dim}, expected 1 or more")
        if self.heads_eps <= 0:
            raise ValueError(f"heads_eps: got {self.heads_eps}, expected more than 0")

    def size(self, dim: int) -> int:
        """The head size in a trunk of width `dim`. Raises ValueError where the width does not divide."""
        if self.head_dim is None and dim % self.heads:
            raise ValueError(f"heads: width {dim} does not divide into {self.heads} heads; set head_dim")
        return dim // self.heads if self.head_dim is None else self.head_dim

    def check(self, dim: int) -> None:
        self.size(dim)

    def cost(self, dim: int, length: float) -> Cost:
        """Operations of the recurrent form: a token costs the same however many came before."""
        size = self.size(dim)
        inner = self.heads * size
        maps = linear_cost(dim, 4 * inner) + linear_cost(inner, dim)
        return maps + Cost(inner, inner, 4 * inner * size)

    def build(self, dim: int, index: int, eps: float) -> Lightning:
        return Lightning(self, dim, index)


class Lightning(Attention):
    """See LightningSpec. The cache holds the state [B, H, d, d] and the document [B] of the last real token."""

    def __init__(self, spec: LightningSpec, dim: int, index: int) -> None:
        super().__init__()
        if index >= spec.depth:
            raise ValueError(
                f"depth: got {spec.depth}, expected more than {index}, the attention modules before this one"
            )
        self.spec, self.index, self.rotary, self.window = spec, index, 0, None
        inner = spec.heads * spec.size(dim)
        self.q, self.k, self.v, self.gate = (nn.Linear(dim, inner, bias=False) for _ in range(4))
        self.o = nn.Linear(inner, dim, bias=False)
        for linear in (self.q, self.k, self.v, self.gate, self.o):
            start_(linear)
        self.norm = RMSNorm(inner, eps=spec.heads_eps)

    def decay(self, like: Tensor) -> Tensor:
        """[H] s of each head in this layer."""
        head = torch.arange(1, self.spec.heads + 1, dtype=like.dtype, device=like.device)
        # 1e-5 twice, as released: the last layer still decays a little
        return 2 ** (-8 / self.spec.heads * head) * (1 - self.index / (self.spec.depth - 1 + 1e-5) + 1e-5)

    def forward(self, x: Tensor, ctx: BlockContext) -> Tensor:
        query, key, value = (self._split(F.silu(linear(x))) for linear in (self.q, self.k, self.v))
        real = ctx.routing.mask.view(x.shape[:2])
        state, last = self._begin(key, ctx)
        document = _carried(ctx.routing.document, real, last)
        out, decay = [query[:, :, :0]], self.decay(key)
        for start in range(0, x.shape[1], self.spec.block):
            part = slice(start, start + self.spec.block)
            see = _Span(real[:, part], document[:, part], last, decay)
            y, state = see.mix(query[:, :, part], key[:, :, part], value[:, :, part], state)
            last = document[:, part][:, -1]
            out.append(y)
        if ctx.cache is not None:
            ctx.cache.states[self.index] = (state.detach(), last)
        y = self.norm(torch.cat(out, 2).transpose(1, 2).flatten(2)).to(x.dtype)
        return self.o(torch.sigmoid(self.gate(x)) * y)

    def _split(self, x: Tensor) -> Tensor:
        """[B, S, H d] -> [B, H, S, d], in float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.unflatten(-1, (self.spec.heads, -1)).transpose(1, 2)

    def _begin(self, key: Tensor, ctx: BlockContext) -> State:
        """What the cache carries on, or nothing yet."""
        kept = None if ctx.cache is None else ctx.cache.states.get(self.index)
        if kept is not None:
            return kept[0].to(key.dtype), kept[1]
        rows, heads, _, size = key.shape
        return key.new_zeros(rows, heads, size, size), torch.full((rows,), -1, dtype=torch.int64, device=key.device)


def _carried(document: Tensor | None, real: Tensor, last: Tensor) -> Tensor:
    """[B, S] the document of each token; padding counts to that of the real token before it, or to `last`."""
    if document is None:
        return torch.where(last < 0, 0, last)[:, None].expand_as(real)
    index = torch.arange(real.shape[1], device=real.device).expand_as(real)
    before = torch.where(real, index, -1).cummax(1).values
    found = document.view_as(real).gather(1, before.clamp(min=0))
    return torch.where(before < 0, last[:, None], found)


class _Span:
    """Consecutive tokens worked on at once.

    real, document  [B, S]; last [B] the document of the token before them; decay [H]
    """

    def __init__(self, real: Tensor, document: Tensor, last: Tensor, decay: Tensor) -> None:
        self.real, self.document, self.last, self.decay = real, document, last, decay[:, None]
        self.count = real.cumsum(1)[:, None].to(decay.dtype)  # [B, 1, S] distances count real tokens

    def mix(self, query: Tensor, key: Tensor, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, S, d] each and the state before them -> what they read [B, H, S, d], and the state behind them."""
        distance = self.count[..., :, None] - self.count[..., None, :]
        seen = self.document[:, :, None] == self.document[:, None, :]
        seen = (seen & self.real[:, None]).tril()[:, None]
        weight = (-self.decay[..., None] * distance).masked_fill(~seen, -torch.inf).exp()
        out = (query @ key.transpose(2, 3) * weight) @ value
        kept = (self.document == self.last[:, None])[:, None]
        read = (-self.decay * self.count).masked_fill(~kept, -torch.inf).exp()
        out = out + query @ state * read[..., None]
        end = self.count[..., -1:]
        stays = self.real & (self.document == self.document[:, -1:])
        share = (-self.decay * (end - self.count)).masked_fill(~stays[:, None], -torch.inf).exp()
        return out, state * read[..., -1:, None] + (key * share[..., None]).transpose(2, 3) @ value
