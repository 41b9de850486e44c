"""Reading fields: types, spellings, defaults, and what is left unread."""

from __future__ import annotations

import pytest

from zoo.hub.conversion.fields import Fields
from zoo.spec import SpecError


def test_null_counts_as_absent_unless_it_means_none() -> None:
    fields = Fields({"a": None, "b": 3, "e": [1, 2]}, "config.json")
    assert fields.get("a", int, 7) == 7 and fields.get("b", float) == 3.0
    assert fields.optional("a", int, 7) is None and fields.optional("c", int, 7) == 7
    assert fields.raw("e") == [1, 2] and fields.raw("f", 4) == 4
    with pytest.raises(SpecError, match=r"config\.json: a: missing"):
        fields.get("a", int)


def test_spellings_of_one_field_must_agree() -> None:
    assert Fields({"n": 3, "m": 3}, "f").get(("n", "m"), int) == 3
    assert Fields({"m": 3}, "f").get(("n", "m"), int) == 3
    with pytest.raises(SpecError, match="f: n: given as n = 3 and as m = 4"):
        Fields({"n": 3, "m": 4}, "f").get(("n", "m"), int)


def test_only_tells_false_from_zero() -> None:
    Fields({"a": False}, "f").only("a", False)
    with pytest.raises(SpecError, match="f: a: got 0, supported is False"):
        Fields({"a": 0}, "f").only("a", False)


def test_what_nobody_reads_is_refused_and_children_are_strict() -> None:
    fields = Fields({"a": 1, "b": 2, "c": None, "d": {"x": 1, "y": 2}}, "f")
    fields.get("a", int)
    child = fields.child("d")
    assert child is not None and child.get("x", int) == 1
    with pytest.raises(SpecError, match=r"f: not honoured here.*: b = 2; remove one"):
        fields.finish({"y"})
    with pytest.raises(SpecError, match=r"f: d: not honoured here.*: y = 2"):
        fields.finish({"b"})
    child.get("y", int)
    assert fields.finish({"b"}) == {"b": 2}
