"""Places are views, and gaps and overlaps are counted."""

from __future__ import annotations

import torch

from zoo.hub.conversion.pieces import WHOLE, Piece, unproduced


def test_places_are_views_in_their_order() -> None:
    ours = torch.arange(24).view(2, 3, 4)
    place = WHOLE.index(1).rows(1, 3).swap()
    assert torch.equal(place(ours), ours[1, 1:3].T)
    place(ours).zero_()
    assert ours[1, 1:].abs().sum() == 0 and ours[1, 0].sum() > 0
    assert torch.equal(WHOLE.unflatten(2, 2, 2).index(0, axis=3)(ours), ours.view(2, 3, 2, 2)[..., 0])
    assert Piece("a", "b", WHOLE.index(0), shape=(12,)).form({"b": ours}) == (12,)


def test_elements_that_are_left_or_given_twice() -> None:
    state = {"a": torch.zeros(4, 2), "b": torch.zeros(3)}
    rows = [Piece("x", "a", WHOLE.rows(0, 2)), Piece("y", "a", WHOLE.rows(2, 4)), Piece("z", "b")]
    assert unproduced(rows, state) == {}
    assert unproduced([*rows, Piece("head", "a", again=True)], state) == {}
    assert unproduced(rows[1:], state) == {"a": 4}
    assert unproduced([*rows, Piece("w", "b")], state) == {"b": -3}
    assert unproduced([*rows, Piece("w", "c")], state) == {"c": -1}
