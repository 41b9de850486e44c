"""The attention rule: same document, and earlier or in the same bidirectional span; in a window where one is set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.cache import Cache

FIELDS = ("mask", "document", "span", "bidirectional")


@dataclass(frozen=True)
class Visible:
    """What the S new tokens see of the L keys that a layer holds, the new ones last.

    mask    [B or 1, 1, S, L] added to logits: 0 where seen, -inf elsewhere; None where all keys are seen, or where
    causal  says that L = S and each sees those up to itself
    """

    mask: Tensor | None
    causal: bool = False


def visibility(tokens: Tokens, cache: Cache | None, windows: Iterable[int | None]) -> dict[int | None, Visible]:
    """What tokens see in layers of each window; the fields of the new tokens go into the cache.

    A window w hides keys w columns or more before a query; layers of a window hold its last keys only. Unpadded rows of
    one document without spans need no tensor. A padded query sees at least itself, so that no row is empty.
    """
    fields = given(tokens)
    past = 0 if cache is None else cache.length
    keys = fields if cache is None else cache.extend(tokens, fields)
    return {window: _visible(tokens, fields, keys, past, window) for window in windows}


def given(tokens: Tokens) -> dict[str, Tensor]:
    """The fields that say more than their plain meaning. On a CPU, where looking is cheap, a full mask says nothing."""
    found = {name: getattr(tokens, name) for name in FIELDS if getattr(tokens, name) is not None}
    mask = tokens.mask
    if mask is not None and mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all()):
        del found["mask"]
    if "bidirectional" not in found:
        found.pop("span", None)
    return found


def _visible(
    tokens: Tokens, fields: dict[str, Tensor], keys: dict[str, Tensor], past: int, window: int | None
) -> Visible:
    new = tokens.shape[1]
    kept = past if window is None else min(past, window - 1)
    length = kept + new
    banded = window is not None and length > window
    if not keys and not banded and (new == 1 or kept == 0):
        return Visible(None, causal=new > 1)
    held = {name: value[:, -length:] for name, value in keys.items()} if length else keys
    if new == 1 and set(held) == {"mask"} and "mask" not in fields:  # a real token behind padded rows
        seen = held["mask"][:, None]
    else:
        own = {name: value[:, kept:] for name, value in held.items()}
        seen = _table(own, held, kept, length, window if banded else None, tokens.embedding.device)
    dtype = tokens.embedding.dtype
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    return Visible(bias[:, None])


def _table(
    own: dict[str, Tensor], held: dict[str, Tensor], kept: int, length: int, window: int | None, device: torch.device
) -> Tensor:
    """[B or 1, S, L] bool: whether a query sees a key. A window limits how far back, a span how far ahead."""
    query = torch.arange(kept, length, device=device)[:, None]
    key = torch.arange(length, device=device)[None]
    seen = (key <= query)[None]
    if "bidirectional" in held:
        spans = own["bidirectional"][:, :, None] & held["bidirectional"][:, None]
        if "span" in held:
            spans = spans & (own["span"][:, :, None] == held["span"][:, None])
        seen = seen | spans
    if window is not None:
        seen = seen & (key > query - window)
    if "document" in held:
        seen = seen & (own["document"][:, :, None] == held["document"][:, None])
    if "mask" in held:
        seen = (seen & held["mask"][:, None]) | (key == query)
    return seen
