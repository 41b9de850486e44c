"""Places are views, and gaps and overlaps are counted."""

from __future__ import annotations

import torch

from zoo.hub.conversion.pieces import WHOLE, Piece, by_name, together, unproduced


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


def test_one_of_theirs_from_several_of_ours() -> None:
    state = {"k": torch.arange(6.0).view(3, 2), "v": torch.arange(6.0, 12.0).view(3, 2)}
    turns = WHOLE.unflatten(0, 3, 2)
    pieces = [Piece("kv", name, shape=(6, 2), part=turns.index(i, axis=1)) for i, name in enumerate("kv")]
    found = by_name(pieces)
    assert list(found) == ["kv"] and unproduced(pieces, state) == {}
    whole = together(found["kv"], state)
    assert torch.equal(whole, torch.stack([state["k"], state["v"]], 1).flatten(0, 1))
    assert all(torch.equal(piece.within(whole), state[piece.ours]) for piece in pieces)
