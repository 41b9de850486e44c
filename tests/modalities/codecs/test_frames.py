"""Codec frames in a model: what is a target, and that sampling keeps the delay pattern, its end and its lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modalities.base import Step, Tokens
from modalities.codecs.frames import CodecFrames

SIZE, DELAYS = 6, [0, 2, 3]


@pytest.fixture
def frames() -> CodecFrames:
    torch.manual_seed(0)
    return CodecFrames(8, 3, SIZE, DELAYS)


def prompt(batch: int) -> Tokens:
    return Tokens(embedding=torch.zeros(batch, 1, 8), position=torch.zeros(batch, 1, 1))


class Script:
    """A step after which `frames.logits` favours given rows [B, R, C]; keeps the tokens it was fed."""

    def __init__(self, frames: CodecFrames, rows: Tensor) -> None:
        self.rows, self.call = rows, 0
        self.fed: list[Tokens] = []
        frames.logits = self.logits  # type: ignore[method-assign]

    def __call__(self, tokens: Tokens) -> Tokens:
        self.fed.append(tokens)
        return tokens

    def logits(self, hidden: Tensor) -> Tensor:
        row = self.rows[:, min(self.call, self.rows.shape[1] - 1)]
        self.call += 1
        return 50.0 * torch.nn.functional.one_hot(row, SIZE + 3).float()


def test_scripted_codes_come_back_and_rows_end_apart(frames: CodecFrames) -> None:
    codes = torch.randint(0, SIZE, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    rows = torch.stack([frames.delayed(c)[1:] for c in codes])
    short = frames.delayed(codes[1, :, :2])[1:]
    rows[1, : len(short)], rows[1, len(short) :] = short, frames.pad
    script = Script(frames, rows)
    out = frames.generate(script, prompt(2), torch.Generator().manual_seed(0), frames=9, temperature=0)
    assert torch.equal(out[0], codes[0]) and torch.equal(out[1], codes[1, :, :2])
    places = [t.position[0, -1, 0].item() for t in script.fed if t.position is not None]
    assert places == list(range(1, 5 + 3 + 1)), "the first row joins the prompt, one token a step after it"


def test_rows_fed_back_are_the_pattern(frames: CodecFrames) -> None:
    codes = torch.randint(0, SIZE, (1, 3, 4), generator=torch.Generator().manual_seed(0))
    fed: list[Tensor] = []
    embed = frames.embed
    frames.embed = lambda rows: (fed.append(rows), embed(rows))[1]  # type: ignore[func-returns-value, method-assign]
    script = Script(frames, frames.delayed(codes[0])[None, 1:])
    frames.generate(script, prompt(1), torch.Generator(), frames=9, temperature=0)
    assert torch.equal(torch.cat(fed, dim=1)[0], frames.delayed(codes[0])[: 4 + 3])


@pytest.mark.parametrize("wish", [SIZE, SIZE + 1, SIZE + 2])
def test_specials_are_never_drawn_and_the_limit_holds(frames: CodecFrames, wish: int) -> None:
    rows = torch.full((2, 1, 3), wish)
    rows[..., 0] = 1  # channel 0 never ends by itself; the others may not
    out = frames.generate(Script(frames, rows), prompt(2), torch.Generator().manual_seed(0), frames=7)
    assert all(o.shape == (3, 7) and 0 <= int(o.min()) <= int(o.max()) < SIZE for o in out)


def test_an_end_at_once_is_held_back(frames: CodecFrames) -> None:
    rows = torch.full((1, 1, 3), frames.eos)
    out = frames.generate(Script(frames, rows), prompt(1), torch.Generator().manual_seed(0), frames=9, least=3)
    assert out[0].shape == (3, 3)


def test_guidance_zero_is_the_conditioned_model(frames: CodecFrames, stand_in: Callable[..., Any]) -> None:
    plain = Tokens(embedding=torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)))
    other = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))
    both = Tokens(embedding=torch.stack([plain.embedding, other], dim=1).flatten(0, 1))
    trunk = stand_in(8)

    def run(tokens: Tokens, guidance: float | None) -> list[Tensor]:
        step: Step = trunk.step()
        return frames.generate(step, tokens, torch.Generator().manual_seed(3), frames=6, guidance=guidance)

    assert all(torch.equal(a, b) for a, b in zip(run(plain, None), run(both, 0.0), strict=True))


def test_loss_counts_codes_and_ends_only(frames: CodecFrames) -> None:
    with torch.no_grad():
        frames.head.weight.zero_()
    rows = frames.delayed(torch.ones(3, 4, dtype=torch.int64))[None]
    loss = frames.loss(torch.zeros(1, rows.shape[1] - 1, 8), rows[:, 1:])
    codes_and_ends = 3 * 4 + 2  # the most delayed channel has no room for its end
    assert float(loss.count) == pytest.approx(codes_and_ends / 3)
    assert float((loss.total / loss.count).detach()) == pytest.approx(math.log(SIZE + 3), rel=1e-5)


def test_embedding_is_the_sum_of_the_tables(frames: CodecFrames) -> None:
    row = torch.tensor([[[1, 2, 8]]])
    table = frames.table.weight.view(3, SIZE + 3, 8)
    torch.testing.assert_close(frames.embed(row)[0, 0], table[0, 1] + table[1, 2] + table[2, 8])
    assert CodecFrames.parameters_of(8, 3, SIZE) == sum(p.numel() for p in frames.parameters())


@pytest.mark.parametrize("delays", [[0, 1], [1, 2, 3], [0, -1, 1]])
def test_bad_delays_are_refused(delays: list[int]) -> None:
    with pytest.raises(ValueError, match="delays: got"):
        CodecFrames(8, 3, SIZE, delays)
