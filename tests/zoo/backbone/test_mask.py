"""The attention rule by brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modalities.base import Tokens
from zoo.backbone.cache import Cache
from zoo.backbone.mask import Visible, visibility

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


def rule(f: dict[str, Any], row: int, i: int, j: int, window: int | None = None) -> bool:
    """Whether query i sees key j."""
    if i == j:
        return True
    same_document = bool(f["document"][row, i] == f["document"][row, j])
    same_span = bool(f["span"][row, i] == f["span"][row, j])
    both = same_span and bool(f["bidirectional"][row, i]) and bool(f["bidirectional"][row, j])
    near = window is None or j > i - window
    return bool(f["mask"][row, j]) and same_document and (j <= i or both) and near


def table(f: dict[str, Any], window: int | None = None) -> torch.Tensor:
    seen = [[[rule(f, r, i, j, window) for j in range(LENGTH)] for i in range(LENGTH)] for r in range(ROWS)]
    return torch.tensor(seen)[:, None]


def look(tokens: Tokens, cache: Cache | None = None, window: int | None = None) -> Visible:
    return visibility(tokens, cache, [window])[window]


def seen(visible: Visible) -> torch.Tensor:
    assert visible.mask is not None and not visible.causal
    assert bool(((visible.mask == 0) | visible.mask.isneginf()).all())
    return visible.mask == 0


@pytest.mark.parametrize("window", [None, 1, 3, 12, 40])
@pytest.mark.parametrize("seed", range(4))
def test_documents_spans_padding_and_windows(tokens: Make, seed: int, window: int | None) -> None:
    f = fields(seed)
    assert torch.equal(seen(look(tokens(ROWS, LENGTH, **f), window=window)), table(f, window))


@pytest.mark.parametrize("name", ["mask", "document", "bidirectional"])
def test_a_field_that_is_left_out_has_its_plain_meaning(tokens: Make, name: str) -> None:
    f = fields(7)
    plain = {"mask": torch.ones(ROWS, LENGTH).bool(), "document": torch.zeros(ROWS, LENGTH).long()}
    plain["bidirectional"] = torch.zeros(ROWS, LENGTH).bool()
    visible = look(tokens(ROWS, LENGTH, **{k: v for k, v in f.items() if k != name}))
    assert torch.equal(seen(visible).expand(ROWS, -1, -1, -1), table({**f, name: plain[name]}))


def test_a_full_mask_says_nothing(tokens: Make) -> None:
    assert look(tokens(mask=torch.ones(2, 6).bool())) == Visible(None, causal=True)


def test_plain_tokens_need_no_tensor(tokens: Make) -> None:
    assert look(tokens()) == look(tokens(), Cache([None])) == look(tokens(), window=6) == Visible(None, causal=True)
    cache = Cache([None, 4])
    visibility(tokens(), cache, [None, 4])
    for _ in range(3):
        assert visibility(tokens(2, 1), cache, [None, 4]) == dict.fromkeys([None, 4], Visible(None))


@pytest.mark.parametrize("window", [None, 1, 3, 7])
def test_a_cache_shows_the_rows_of_the_new_tokens(tokens: Make, window: int | None) -> None:
    f = fields(2)
    whole, cache = table(f, window), Cache([window])
    for start, stop in ((0, 5), (5, 6), (6, 10), (10, 11), (11, 12)):
        part = {name: value[:, start:stop] for name, value in f.items()}
        first = 0 if window is None else max(0, start - window + 1)
        got = seen(look(tokens(ROWS, stop - start, **part), cache, window))
        assert torch.equal(got, whole[:, :, start:stop, first:stop])
    assert cache.length == LENGTH


def test_fields_may_come_late_and_stay_away(tokens: Make) -> None:
    cache = Cache([None])
    assert look(tokens(2, 3), cache).mask is None
    assert seen(look(tokens(2, 1, mask=torch.tensor([[True], [False]])), cache)).all()
    assert cache.real().tolist() == [[4], [3]]
    assert seen(look(tokens(2, 1), cache)).flatten(1).tolist() == [[True] * 5, [True, True, True, False, True]]
    assert seen(look(tokens(2, 1, document=torch.ones(2, 1).long()), cache)).sum().item() == 2


def test_a_cache_keeps_to_its_rows(tokens: Make) -> None:
    cache = Cache([None])
    look(tokens(2, 3), cache)
    with pytest.raises(ValueError, match="cache: holds 2 rows, got tokens of 1"):
        look(tokens(1, 1), cache)
    cache.reorder(torch.tensor([1]))
    look(tokens(1, 1), cache)
    assert cache.length == 4


def test_no_query_is_left_without_a_key(tokens: Make) -> None:
    assert bool(seen(look(tokens(ROWS, LENGTH, mask=torch.zeros(ROWS, LENGTH).bool()))).any(-1).all())
