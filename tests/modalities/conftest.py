"""A small transformer that stands in for the trunk, so that modalities are tested without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.base import Step, Tokens, cat_tokens


def allowed(tokens: Tokens) -> Tensor:
    """Who attends to whom, [B, S, S]: the rule of `Tokens`; a padded row sees itself, so that softmax stays finite."""
    rows, length = tokens.shape
    allow = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, -1, -1)
    if tokens.bidirectional is not None:
        span = torch.zeros(tokens.shape) if tokens.span is None else tokens.span
        both = tokens.bidirectional[:, :, None] & tokens.bidirectional[:, None, :]
        allow = allow | (both & (span[:, :, None] == span[:, None, :]))
    if tokens.document is not None:
        allow = allow & (tokens.document[:, :, None] == tokens.document[:, None, :])
    if tokens.mask is not None:
        allow = allow & tokens.mask[:, None, :]
    return allow | torch.eye(length, dtype=torch.bool)


class StandIn(nn.Module):
    """Two layers of one-head attention with rotary positions and a small MLP, over width `dim`."""

    def __init__(self, dim: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(dim, 3 * dim, bias=False) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)) for _ in range(layers)
        )

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens to tokens with the final normed state; masked tokens come out as zero."""
        x, (rows, length) = tokens.embedding, tokens.shape
        allow = allowed(tokens)
        position = torch.arange(length).expand(rows, -1) if tokens.position is None else tokens.position[..., 0]
        for project, mlp in zip(self.project, self.mlp, strict=True):
            q, k, v = project(F.rms_norm(x, x.shape[-1:])).chunk(3, -1)
            q, k = rotate(q, position), rotate(k, position)
            x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=allow)
            x = x + mlp(F.rms_norm(x, x.shape[-1:]))
        x = F.rms_norm(x, x.shape[-1:])
        return tokens.replace(embedding=x if tokens.mask is None else x * tokens.mask[..., None])

    def step(self) -> Step:
        """A step that remembers every token it was fed, as a key/value cache does, and answers the new ones only."""
        seen: list[Tokens] = []

        def run(tokens: Tokens) -> Tokens:
            seen.append(tokens)
            whole = self(cat_tokens(seen))
            return tokens.replace(embedding=whole.embedding[:, -tokens.shape[1] :])

        return run


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Rotary positions on [B, S, D], halves rotated together."""
    half = x.shape[-1] // 2
    angle = position[..., None].float() * 100.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


@pytest.fixture
def stand_in() -> Callable[..., StandIn]:
    """Makes a stand-in trunk with weights from a fixed seed."""

    def make(dim: int = 32, seed: int = 0) -> StandIn:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return StandIn(dim)

    return make
