"""Ids to text while they are drawn."""

from __future__ import annotations

import random
from typing import Any

import pytest

from modalities.text.tokenizer import ByteTokenizer
from modalities.text.writer import PATIENCE, Detokeniser, Writer

BYTES = ByteTokenizer()


def pieces(data: bytes, stop: tuple[str, ...] = ()) -> list[str]:
    writer, out = Writer(BYTES, stop), []
    for token in data:
        if writer.push(token):
            break
        out.append(writer.take())
    return [*out, writer.finish()]


def test_a_character_waits_for_its_last_byte() -> None:
    assert pieces("a\u00e9\u20acb".encode()) == ["a", "", "\u00e9", "", "", "\u20ac", "b", ""]
    assert pieces("a\u00e9".encode()[:2]) == ["a", "", "\ufffd"]


def test_what_is_no_text_does_not_wait_for_ever() -> None:
    found = pieces(b"\xff" * 100)
    assert "".join(found) == "\ufffd" * 100 and any(found[:PATIENCE])


def test_pieces_are_the_text_whatever_the_bytes() -> None:
    rng = random.Random(0)
    for _ in range(20):
        data = "".join(rng.choice("ab \u00e9\u20ac\U0001f600\n") for _ in range(60)).encode()
        assert "".join(pieces(data)) == data.decode()


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one. two", (". t",), "one"),
        ("one. two", (". x",), "one. two"),
        ("aaab", ("aab",), "a"),
        ("abcd", ("cd", "bc"), "a"),
        ("stop", ("stop",), ""),
        ("x\u00e9y", ("\u00e9",), "x"),
    ],
)
def test_stop_texts(text: str, stop: tuple[str, ...], shown: str) -> None:
    assert "".join(pieces(text.encode(), stop)) == shown


def test_nothing_is_shown_that_may_begin_a_stop_text() -> None:
    assert pieces(b"a<|b<|end|>zz", ("<|end|>",)) == ["a", "", "", "<|b", "", "", "", "", "", "", ""]


class Counting:
    """A byte tokenizer that says how much it decodes."""

    decoded = 0

    def decode(self, ids: list[int]) -> str:
        self.decoded += len(ids)
        return BYTES.decode(ids)


def test_the_work_per_id_does_not_grow() -> None:
    tokenizer: Any = Counting()
    writer = Writer(tokenizer, ("never",))
    for token in b"word " * 200:
        writer.push(token)
    assert tokenizer.decoded < 5 * 1000
    special: Any = Counting()
    detokeniser = Detokeniser(special)
    for _ in range(1000):
        detokeniser.push(257)
    assert special.decoded < 5 * PATIENCE * 1000
