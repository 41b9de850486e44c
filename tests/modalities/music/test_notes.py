"""The note representation: an exact likelihood, laws of padding and causality, composing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from modalities.music.data import TunesSpec
from modalities.music.notes import NoteMusic
from modalities.music.score import START, VOICES
from modalities.music.spec import MusicSpec, NotesSpec

DIM = 16


def music(length: int = 32, transpose: int = 0) -> NoteMusic:
    torch.manual_seed(0)
    module = MusicSpec(representation=NotesSpec(length=length, transpose=transpose)).build(DIM)
    assert isinstance(module, NoteMusic)
    return module


def piece(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(50, 70, size=(steps, VOICES))


def roughen(module: NoteMusic) -> None:
    """Draws the zero-initialised parts at random, so that the head is not uniform."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.head.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)


def test_parameters_are_as_the_spec_counts() -> None:
    assert sum(p.numel() for p in music().parameters()) == MusicSpec().parameters(DIM)


def test_an_untrained_model_needs_seven_bits(trunk: Any) -> None:
    module = music()
    batch = module.stack([module.example({"notes": piece(9)})])
    loss = module.loss(trunk.new_step()(module.encode(batch)), batch)
    assert int(loss.count) == 9 * VOICES
    assert float(loss.total.detach()) / 36 == pytest.approx(7 * math.log(2), rel=1e-5)


def test_the_likelihood_of_a_voice_sums_to_one_and_sees_only_voices_above() -> None:
    module = music()
    roughen(module)
    context = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([[60, 55, 50, 40], [0, 0, 0, 0], [START] * 4, [1, 127, 0, 60], [70, 65, 60, 45]])
    target = torch.tensor([[60, 57, 0, 40]]).expand(5, -1)
    chain = sum(
        module.head.logits(context, last[:, v], target[:, :v], v).log_softmax(-1)[:, target[0, v]]
        for v in range(VOICES)
    )
    torch.testing.assert_close(-module.head.losses(context, last, target).sum(1), chain)
    other = target.clone()
    other[:, 2] = 62
    before, after = (module.head.losses(context, last, t) for t in (target, other))
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_padding_and_batch_change_nothing(trunk: Any) -> None:
    module = music()
    roughen(module)
    rows = [module.example({"notes": piece(n, n)}) for n in (5, 12, 8)]
    together = module.stack(rows)
    assert together["mask"].sum(1).tolist() == [5, 12, 8]
    whole = module.loss(trunk.new_step()(module.encode(together)), together)
    each = [module.loss(trunk.new_step()(module.encode(b)), b) for b in (module.stack([r]) for r in rows)]
    assert int(whole.count) == sum(int(one.count) for one in each) == 25 * VOICES
    torch.testing.assert_close(whole.total, sum(one.total for one in each), rtol=1e-5, atol=1e-4)


def test_the_future_changes_nothing(trunk: Any) -> None:
    module, notes = music(), piece(10)
    changed = notes.copy()
    changed[6:] += 1
    a, b = (module.encode(module.stack([module.example({"notes": n})])).embedding for n in (notes, changed))
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7], b[:, 7])


def test_crops_and_keys_are_drawn_from_the_generator() -> None:
    module = music(length=16, transpose=5)
    examples = [module.example({"notes": piece(100)})] * 6
    draw = [module.collate(examples, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert all(torch.equal(draw[0][name], draw[1][name]) for name in draw[0])
    assert not torch.equal(draw[0]["target"], draw[2]["target"])
    assert draw[0]["target"].shape == (6, 16, VOICES)
    # the step read is the step written one row before, in the same key
    assert torch.equal(draw[0]["input"][:, 1:], draw[0]["target"][:, :-1])


def test_transposing_stays_within_pitches(generator: torch.Generator) -> None:
    module = music(transpose=12)
    notes = np.array([[127, 64, 0, 1]] * 4)
    batch = module.collate([module.example({"notes": notes})] * 8, generator)
    assert batch["target"].tolist() == [notes.tolist()] * 8


def test_windows_hold_every_note_once() -> None:
    module = music(length=16)
    example = module.example({"notes": piece(37)})
    windows = module.windows(example)
    assert [len(w["target"]) for w in windows] == [16, 16, 5]
    assert torch.equal(torch.cat([w["target"] for w in windows]), example["target"])
    assert windows[1]["beat"][0] == 0 and torch.equal(windows[1]["input"][0], example["target"][15])


def test_it_learns(trunk: Any, train: Callable[..., list[float]]) -> None:
    module = music(length=16)
    losses = train(module, trunk, [module.example(raw) for raw in TunesSpec().build("train")[:4]], 30)
    assert losses[-1] < 0.5 * losses[0]


def test_composing_is_incremental_and_equal_to_the_whole(trunk: Any) -> None:
    module = music()
    roughen(module)
    step, calls = trunk.new_step(), []

    def counted(tokens: Any) -> Any:
        calls.append((tokens.shape[1], tokens.position[0, :, 0].tolist()))
        return step(tokens)

    seed = torch.from_numpy(piece(3))
    notes = module.compose(counted, 5, seed=seed, temperature=0)
    assert calls == [(4, [0, 1, 2, 3]), (1, [4]), (1, [5]), (1, [6]), (1, [7])]
    assert notes.shape == (8, VOICES) and torch.equal(notes[:3], seed)
    batch = module.stack([module.example({"notes": notes.numpy()})])
    context = module.decode(trunk.new_step()(module.encode(batch)))[0]
    best = module.head.write(context, batch["input"][0], 0, None, None)
    assert torch.equal(best[3:], notes[3:])


def test_composing_repeats_with_its_generator(trunk: Any) -> None:
    module = music()
    roughen(module)
    a, b, c = (
        module.compose(trunk.new_step(), 6, top_p=0.9, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    audio, rate = module.sound(a)
    assert rate == 16_000 and len(audio) / rate == pytest.approx(6 * module.seconds, abs=0.2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"seed": torch.zeros(2, 3, dtype=torch.int64)}, "seed: got shape"),
        ({"seed": torch.full((2, 4), 130)}, "seed: pitch 130"),
        ({"temperature": -1.0}, "temperature: got -1"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
        ({"generator": None}, "generator: none given"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], says: str, trunk: Any, generator: torch.Generator) -> None:
    given: dict[str, Any] = {"steps": 2, "generator": generator} | settings
    with pytest.raises(ValueError, match=says):
        music().compose(trunk.new_step(), **given)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"length": 1}, "^length: got 1"), ({"transpose": 13}, r"^transpose: got 13, expected 0\.\.12")],
)
def test_bad_keys_are_named(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        NotesSpec(**settings)
