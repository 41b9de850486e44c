from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modalities.base import Tokens
from modalities.text.evaluate import START, bigram, bits, evaluate, windows
from modalities.text.module import Text
from modalities.text.spec import TextSpec

Make = Callable[..., Any]


def make(length: int = 8) -> Text:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextSpec(length=length).build(32)


@pytest.mark.parametrize("size", [1, 4, 7, 8, 9, 12, 13, 31])
def test_windows_score_every_byte_once(size: int) -> None:
    document = bytes(range(65, 65 + size)).decode()
    held = windows(make(), [{"text": document[:5], "ends": False}, {"text": document[5:]}], None)
    assert b"".join(bytes(w.ids[w.scored :]) for w in held) == document.encode()
    assert held[0].before == START
    for before, window in pairwise(held):
        assert window.before == before.ids[-1] and window.scored == 4


def test_a_limit_spreads_the_windows() -> None:
    held = windows(make(), [{"text": "x" * 400}], 5)
    assert len(held) == 5 and held[0].before == START


def test_the_bigram_counts_pairs() -> None:
    table = bigram([{"text": "abab"}, {"text": "b"}], smoothing=1.0)
    assert np.allclose((2.0**-table).sum(1), 1)
    assert table[97, 98] == pytest.approx(-np.log2(3 / 258))
    assert table[98, 97] == pytest.approx(-np.log2(2 / 257))
    assert table[START, 98] == pytest.approx(-np.log2(2 / 258))


def test_an_undecided_model_needs_the_bits_of_its_vocabulary() -> None:
    text = make()
    held = windows(text, [{"text": "hello there"}], None)

    def blank(tokens: Tokens) -> Tokens:
        return tokens.replace(embedding=torch.zeros_like(tokens.embedding))

    assert bits(text, lambda: blank, held) == pytest.approx(11 * np.log2(259), rel=1e-5)


def test_evaluation_reports_the_same_bytes_for_both_and_writes_a_text(stand_in: Make, tmp_path: Path) -> None:
    text, trunk = make(), stand_in()
    train, test = [{"text": "the cat sat. " * 30}], [{"text": "the cat sat. the cat\nsat."}]
    (score,) = evaluate(
        text, trunk.step, train, test, generator=torch.Generator().manual_seed(0), out=tmp_path / "new", limit=None
    )
    assert score.baseline < 3 < score.value and not score.higher and not score.won
    assert "25 bytes" in score.note
    assert (tmp_path / "new" / "text.txt").read_text(encoding="utf-8").startswith("the cat sat. the cat\n")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["text.txt"]


def test_no_held_out_text_is_an_error(stand_in: Make) -> None:
    with pytest.raises(ValueError, match="test: the held-out texts hold no bytes"):
        evaluate(make(), stand_in().step, [{"text": "a"}], [], generator=torch.Generator())


def test_a_few_steps_of_training_beat_the_bigram(stand_in: Make) -> None:
    """A text with long memory: after "ab" comes "c", after "bb" comes "a", which pairs of bytes cannot tell."""
    text, trunk = make(16), stand_in()
    corpus = [{"text": "abcbba" * 60, "ends": False}]
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW([*text.parameters(), *trunk.parameters()], lr=1e-2)
    example = text.example(corpus[0])
    for _ in range(60):
        batch = text.collate([example] * 8, generator)
        loss = text.loss(trunk(text.encode(batch)), batch)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
    (score,) = evaluate(text, trunk.step, corpus, corpus, generator=generator)
    assert score.won and score.value < 0.6 * score.baseline
