"""The attention rule by brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modalities.base import Tokens
from zoo.backbone.cache import Cache
from zoo.backbone.mask import attention_mask

Make = Callable[..., Tokens]
ROWS, LENGTH = 3, 12


def fields(seed: int) -> dict[str, Any]:
    """Random documents, spans and padding, in runs."""
    generator = torch.Generator().manual_seed(seed)

    def runs(chance: float) -> torch.Tensor:
        return (torch.rand(ROWS, LENGTH, generator=generator) < chance).long().cumsum(1)

    return {
        "mask": torch.rand(ROWS, LENGTH, generator=generator) < 0.8,
        "document": runs(0.25),
        "span": runs(0.4),
        "bidirectional": torch.rand(ROWS, LENGTH, generator=generator) < 0.6,
    }


def rule(f: dict[str, Any], row: int, i: int, j: int) -> bool:
    """Whether query i sees key j."""
    if i == j:
        return True
    same_document = bool(f["document"][row, i] == f["document"][row, j])
    same_span = bool(f["span"][row, i] == f["span"][row, j])
    both = same_span and bool(f["bidirectional"][row, i]) and bool(f["bidirectional"][row, j])
    return bool(f["mask"][row, j]) and same_document and (j <= i or both)


def table(f: dict[str, Any]) -> torch.Tensor:
    seen = [[[rule(f, r, i, j) for j in range(LENGTH)] for i in range(LENGTH)] for r in range(ROWS)]
    return torch.tensor(seen)[:, None]


@pytest.mark.parametrize("seed", range(4))
def test_documents_spans_and_padding(tokens: Make, seed: int) -> None:
    f = fields(seed)
    mask, causal = attention_mask(tokens(ROWS, LENGTH, **f), None)
    assert mask is not None and not causal
    assert torch.equal(mask, table(f))


@pytest.mark.parametrize("name", ["mask", "document", "bidirectional"])
def test_a_field_that_is_left_out_has_its_plain_meaning(tokens: Make, name: str) -> None:
    f = fields(7)
    plain = {"mask": torch.ones(ROWS, LENGTH).bool(), "document": torch.zeros(ROWS, LENGTH).long()}
    plain["bidirectional"] = torch.zeros(ROWS, LENGTH).bool()
    mask, _ = attention_mask(tokens(ROWS, LENGTH, **{k: v for k, v in f.items() if k != name}), None)
    assert mask is not None
    assert torch.equal(mask, table({**f, name: plain[name]}))


def test_plain_tokens_need_no_tensor(tokens: Make) -> None:
    assert attention_mask(tokens(), None) == (None, True)


def test_a_cache_shows_the_rows_of_the_new_tokens(tokens: Make) -> None:
    f = fields(2)
    whole, cache = table(f), Cache(1)
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        part = {name: value[:, start:stop] for name, value in f.items()}
        got, causal = attention_mask(tokens(ROWS, stop - start, **part), cache)
        assert got is not None and not causal
        expected = whole[:, :, start:stop, :stop]
        assert torch.equal(got, expected)
    assert cache.length == LENGTH


def test_no_query_is_left_without_a_key(tokens: Make) -> None:
    mask, _ = attention_mask(tokens(ROWS, LENGTH, mask=torch.zeros(ROWS, LENGTH).bool()), None)
    assert mask is not None and bool(mask.any(-1).all())
