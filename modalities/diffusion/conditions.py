"""Conditions of a generated image: the time step, and a class or a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modalities.base import Batch, Tokens, pad_rows
from modalities.diffusion.spec import TIME_WIDTH


class TimeEmbedding(nn.Module):
    """Times [B] in [0, 1] to [B, dim]: sines and cosines of 1000 t, then a small MLP (Peebles and Xie 2023, DiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_WIDTH, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        half = TIME_WIDTH // 2  # no buffer: a model cast to bfloat16 would round these rates, and angles reach 1000
        angle = 1000 * t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


def class_labels(values: Sequence[int] | Sequence[str] | Tensor, classes: int) -> Tensor:
    """Labels [B] as int64. Raises ValueError for what is no label of one of `classes` classes."""
    if not isinstance(values, Tensor) and any(isinstance(v, str) for v in values):
        raise ValueError(f"conditions: got {list(values)}, expected class numbers 0..{classes - 1}, not words")
    labels = torch.as_tensor(values, dtype=torch.int64)
    if labels.ndim != 1 or bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"conditions: got {labels.tolist()}, expected a list of class numbers 0..{classes - 1}")
    return labels


def prompt_ids(tokenizer: Any, prompt: object, longest: int) -> Tensor:
    """Token ids [1..longest] of a prompt behind the start mark; the mark alone is the free condition."""
    if not isinstance(prompt, str):
        raise ValueError(f"conditions: got {prompt!r}, expected a prompt in words")
    return torch.tensor([tokenizer.bos, *tokenizer.encode(prompt)][:longest])


def pad_prompts(rows: Sequence[Tensor]) -> Batch:
    """{"ids" [B, L], "mask" [B, L]} of prompts of any lengths."""
    ids, mask = pad_rows(rows)
    return {"ids": ids, "mask": mask}


def behind_prompt(image: Tokens, ids: Tensor, mask: Tensor, embedding: Tensor) -> Tokens:
    """The prompt (ids and mask [B, L], embedding [B, L, D]), then the image; its grid starts where positions end."""
    rows, length = ids.shape
    start = mask.sum(dim=1).view(-1, 1, 1)
    prompt = torch.arange(length, device=ids.device).view(1, -1, 1).expand(rows, -1, 2)
    assert image.position is not None and image.span is not None and image.bidirectional is not None
    return image.replace(
        embedding=torch.cat([embedding.to(image.embedding), image.embedding], dim=1),
        mask=torch.cat([mask, image.bidirectional], dim=1),
        position=torch.cat([prompt, image.position + start], dim=1),
        span=torch.cat([torch.zeros_like(ids), image.span], dim=1),
        bidirectional=torch.cat([torch.zeros_like(mask), image.bidirectional], dim=1),
        ids=torch.cat([ids.masked_fill(~mask, -1), torch.full_like(image.span, -1)], dim=1),
    )
