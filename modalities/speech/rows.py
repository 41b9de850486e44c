"""Rows of different tasks in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from modalities.base import Tokens


def stack_rows(parts: Sequence[Tokens]) -> Tokens:
    """Rows of several kinds below one another, padded at the end to the longest. All fields that are used are set."""
    longest = max(p.shape[1] for p in parts)

    def column(name: str, value: float) -> Tensor:
        padded = []
        for part in parts:
            field = cast(Tensor, getattr(part, name))
            filler = field.new_full((field.shape[0], longest - field.shape[1], *field.shape[2:]), value)
            padded.append(torch.cat([field, filler], dim=1))
        return torch.cat(padded)

    return Tokens(
        embedding=column("embedding", 0),
        mask=column("mask", 0),
        position=column("position", 0),
        span=column("span", 0),
        bidirectional=column("bidirectional", 0),
        ids=column("ids", -1),
    )
