"""The attention rule: same document, and earlier or in the same bidirectional span."""

from __future__ import annotations

import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.cache import Cache


def attention_mask(tokens: Tokens, cache: Cache | None) -> tuple[Tensor | None, bool]:
    """(mask [B, 1, S, L] bool or None, is_causal) for scaled_dot_product_attention over L = past + S keys.

    Tokens without mask, document and span need no tensor. A padded query sees at least itself, so no row is empty.
    """
    plain = tokens.mask is None and tokens.document is None and tokens.bidirectional is None
    if cache is None and plain:
        return None, True
    fields = _fields(tokens)
    past = 0
    keys = fields
    if cache is not None:
        past = cache.length
        keys = cache.extend(**fields)
    length = keys["mask"].shape[1]
    query = torch.arange(past, length, device=tokens.embedding.device)[:, None]
    key = torch.arange(length, device=tokens.embedding.device)[None]
    spans = fields["bidirectional"][:, :, None] & keys["bidirectional"][:, None]
    spans = spans & (fields["span"][:, :, None] == keys["span"][:, None])
    seen = (key <= query) | spans
    seen = seen & (fields["document"][:, :, None] == keys["document"][:, None]) & keys["mask"][:, None]
    return (seen | (key == query))[:, None], False


def _fields(tokens: Tokens) -> dict[str, Tensor]:
    """mask, document, span and bidirectional with their plain meaning filled in."""
    rows, length = tokens.shape
    device = tokens.embedding.device

    def plain(value: Tensor | None, fill: int, dtype: torch.dtype) -> Tensor:
        return torch.full((rows, length), fill, dtype=dtype, device=device) if value is None else value

    return {
        "mask": plain(tokens.mask, 1, torch.bool),
        "document": plain(tokens.document, 0, torch.int64),
        "span": plain(tokens.span, 0, torch.int64),
        "bidirectional": plain(tokens.bidirectional, 0, torch.bool),
    }
