from __future__ import annotations

import pytest
import torch

from modalities.base import Score, Tokens, cat_tokens, pad_rows


def part(length: int, **fields: object) -> Tokens:
    return Tokens(embedding=torch.ones(2, length, 4), **fields)  # type: ignore[arg-type]


def test_pad_rows_fills_the_end_and_says_where() -> None:
    out, mask = pad_rows([torch.tensor([1, 2]), torch.tensor([3])], -1)
    assert out.tolist() == [[1, 2], [3, -1]]
    assert mask.tolist() == [[True, True], [True, False]]


def test_pad_rows_keeps_trailing_axes_and_a_given_length() -> None:
    out, mask = pad_rows([torch.ones(1, 3), torch.ones(0, 3)], 0, length=2)
    assert out.shape == (2, 2, 3) and out.sum() == 3
    assert mask.tolist() == [[True, False], [False, False]]


def test_cat_tokens_needs_a_part() -> None:
    with pytest.raises(ValueError, match="parts: got an empty list"):
        cat_tokens([])


def test_positions_go_on_where_the_part_before_ended() -> None:
    joined = cat_tokens([part(2), part(3)])
    assert joined.position is not None and joined.position[0, :, 0].tolist() == [0, 1, 2, 3, 4]
    given = torch.tensor([5, 6]).view(1, 2, 1).expand(2, -1, -1)
    joined = cat_tokens([part(2, position=given), part(2)])
    assert joined.position is not None and joined.position[1, :, 0].tolist() == [5, 6, 7, 8]


def test_positions_of_two_axes_spread_one_axis_and_count_on_from_the_largest() -> None:
    grid = torch.tensor([[0, 0], [0, 1], [1, 3]]).expand(2, -1, -1)
    joined = cat_tokens([part(1), part(3, position=grid), part(1)])
    assert joined.position is not None
    assert joined.position[0].tolist() == [[0, 0], [0, 0], [0, 1], [1, 3], [4, 4]]


def test_an_empty_part_leaves_the_counting_alone() -> None:
    joined = cat_tokens([part(2), part(0), part(1)])
    assert joined.position is not None and joined.position[0, :, 0].tolist() == [0, 1, 2]


def test_missing_fields_take_their_plain_meaning() -> None:
    masked = torch.tensor([[True, False]]).expand(2, -1)
    ids = torch.tensor([[7, 8]]).expand(2, -1)
    joined = cat_tokens([part(1), part(2, mask=masked, ids=ids)])
    assert joined.mask is not None and joined.mask[0].tolist() == [True, True, False]
    assert joined.ids is not None and joined.ids[0].tolist() == [-1, 7, 8]
    plain = cat_tokens([part(1), part(1)])
    assert plain.mask is None and plain.ids is None and plain.span is None and plain.document is None


def test_spans_of_different_parts_stay_apart() -> None:
    two_way = torch.ones(2, 2, dtype=torch.bool)
    spans = torch.zeros(2, 2, dtype=torch.int64)
    joined = cat_tokens([part(2, span=spans, bidirectional=two_way), part(2, span=spans, bidirectional=two_way)])
    assert joined.span is not None and joined.span[0].tolist() == [0, 0, 1, 1]
    assert joined.bidirectional is not None and joined.bidirectional.all()


def test_cond_is_that_of_the_first_part_that_has_one() -> None:
    cond = torch.full((2, 3), 5.0)
    assert cat_tokens([part(1), part(1, cond=cond)]).cond is cond


@pytest.mark.parametrize(
    ("value", "baseline", "higher", "bound", "won"),
    [
        (2.0, 3.0, False, None, True),
        (2.0, 3.0, True, None, False),
        (0.9, 0.1, True, 0.05, False),
        (float("nan"), 0.1, True, None, False),
        (float("nan"), 0.1, False, None, False),
    ],
)
def test_a_score_wins_on_its_bound(value: float, baseline: float, higher: bool, bound: float | None, won: bool) -> None:
    assert Score("x", value, baseline, higher, "unit", bound=bound).won is won
