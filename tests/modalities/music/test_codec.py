"""The codec representation: captions, the delay pattern, laws of padding, composing to sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from modalities.codecs.spec import LogMelRVQSpec
from modalities.music.codec import CodecMusic
from modalities.music.spec import CodecMusicSpec, MusicSpec
from modalities.music.synth import synthesise
from modalities.text.module import Text
from modalities.text.spec import TextSpec

DIM, RATE = 16, 8000
CODEC = LogMelRVQSpec(codebooks=3, size=16, iterations=2, griffin=2)
SPEC = MusicSpec(representation=CodecMusicSpec(codec=CODEC, lead=2, length=12))


def raws() -> list[dict[str, Any]]:
    chords = ([72, 67, 64, 48], [74, 65, 62, 50], [71, 67, 62, 43])
    return [
        {"audio": synthesise([c] * 8 + [chords[0]] * 4, rate=RATE), "rate": RATE, "text": t}
        for c, t in zip(chords, ("home", "away", "a tension"), strict=True)
    ]


@pytest.fixture(scope="module")
def music() -> CodecMusic:
    torch.manual_seed(0)
    text = TextSpec().build(DIM)
    module = SPEC.build(DIM, text)
    assert isinstance(module, CodecMusic)
    module.fit(raws())
    return module


def test_the_text_modality_is_lent_or_own(music: CodecMusic) -> None:
    assert not any(name.startswith(("own_text", "_text")) for name in music.state_dict())
    trained = [p for p in music.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == SPEC.parameters(DIM)
    own = SPEC.build(DIM)
    assert isinstance(own, CodecMusic) and isinstance(own.text, Text) and own.text is own.own_text


def test_delays_follow_the_sheet(music: CodecMusic) -> None:
    assert music.frames.delays == (0, 2, 3)
    example = music.example(raws()[0])
    rows, deep = example["rows"], 3
    codes = music.pieces(example)
    assert len(rows) == len(codes) + deep + 1 and (rows[0] == music.frames.bos).all()
    assert rows[1, 0] == codes[0, 0] and rows[3, 1] == codes[0, 1] and rows[4, 2] == codes[0, 2]


def test_another_rate_is_resampled(music: CodecMusic) -> None:
    raw = raws()[0]
    doubled = {**raw, "audio": np.repeat(raw["audio"], 2), "rate": 2 * RATE}
    assert abs(len(music.pieces(music.example(doubled))) - len(music.pieces(music.example(raw)))) <= 1


def test_padding_and_batch_change_nothing(music: CodecMusic, trunk: Any) -> None:
    rows = [music.windows(music.example(raw))[i] for i, raw in enumerate(raws())]
    together = music.stack(rows)
    whole = music.loss(trunk.new_step()(music.encode(together)), together)
    each = [music.loss(trunk.new_step()(music.encode(b)), b) for b in (music.stack([r]) for r in rows)]
    torch.testing.assert_close(whole.count, sum(one.count for one in each))
    torch.testing.assert_close(whole.total, sum(one.total for one in each), rtol=1e-5, atol=1e-4)


def test_windows_score_every_code_once_and_nothing_else(music: CodecMusic, trunk: Any) -> None:
    example = music.example(raws()[0])
    batch = music.stack(music.windows(example))
    loss = music.loss(trunk.new_step()(music.encode(batch)), batch)
    assert round(float(loss.count) * music.codec.codebooks) == music.pieces(example).size


def test_dropped_captions_leave_the_bos(music: CodecMusic, generator: torch.Generator) -> None:
    music.drop, kept = 1.0, music.drop
    batch = music.collate([music.example(raw) for raw in raws()], generator)
    dropped = music.prepare(batch, generator)["caption_mask"]
    music.drop = kept
    assert batch["caption_mask"].sum(1).tolist() == [5, 5, 10]
    assert dropped.sum(1).tolist() == [1, 1, 1] and dropped[:, 0].all()


def test_it_learns_and_composes_sound(
    music: CodecMusic, trunk: Any, train: Callable[..., list[float]], generator: torch.Generator
) -> None:
    losses = train(music, trunk, [music.example(raw) for raw in raws()], 80)
    assert losses[-1] < 0.8 * losses[0]
    codes = music.compose(trunk.new_step(), 20, text="home", generator=generator)
    assert codes.shape[0] == 3 and 10 <= codes.shape[1] <= 20 and 0 <= int(codes.min()) <= int(codes.max()) < 16
    audio, rate = music.sound(codes)
    assert rate == RATE and len(audio) / rate == pytest.approx(codes.shape[1] * music.seconds, rel=0.1)
    assert np.isfinite(audio).all() and 0 < np.abs(audio).max() <= 1


def test_guidance_of_zero_changes_nothing(music: CodecMusic, trunk: Any) -> None:
    plain, zero, strong = (
        music.compose(trunk.new_step(), 12, text="away", temperature=0, guidance=g, generator=torch.Generator())
        for g in (None, 0.0, 30.0)
    )
    assert torch.equal(plain, zero)
    assert strong.shape[0] == 3


@pytest.mark.parametrize(
    ("audio", "says"),
    [
        (np.zeros((100, 2), dtype=np.float32), r"shape \[100, 2\].*average the channels"),
        (np.zeros(100, dtype=np.int16), "got int16"),
        (np.zeros(0, dtype=np.float32), "empty"),
        (np.full(4000, np.nan, dtype=np.float32), "NaN"),
    ],
)
def test_bad_audio_is_named(music: CodecMusic, audio: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=f"^audio: .*{says}"):
        music.example({"audio": audio, "rate": RATE})


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"lead": -1}, "^lead: got -1"), ({"length": 0}, "^length: got 0"), ({"drop": 1.5}, "^drop: got 1.5")],
)
def test_bad_keys_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CodecMusicSpec(**settings)
