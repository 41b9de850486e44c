"""The speech modality on a stand-in trunk: layout, padding, tasks, loss, and decoding with a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modalities.base import Batch, Raw, Tokens
from modalities.speech.module import Speech
from modalities.speech.spec import SpeechSpec


def batch_of(speech: Speech, raws: list[Raw], seed: int = 0) -> Batch:
    return speech.collate([speech.example(r) for r in raws], torch.Generator().manual_seed(seed))


def only(raws: list[Raw], *, heard: bool) -> tuple[SpeechSpec, list[Raw]]:
    return SpeechSpec(transcribe=float(heard), speak=float(not heard), drop_speaker=0, drop_text=0), raws


def with_spec(speech: Speech, spec: SpeechSpec, monkeypatch: pytest.MonkeyPatch) -> Speech:
    monkeypatch.setattr(speech, "spec", spec)
    return speech


def test_parameters_are_counted(speech: Speech) -> None:
    assert speech.spec.parameters(32) == sum(p.numel() for p in speech.parameters())
    alone = speech.spec.build(32)
    assert alone.own_text is not None and any(k.startswith("own_text.") for k in alone.state_dict())
    assert not any("text" in k for k in speech.state_dict()), "a borrowed text modality is not saved twice"


def test_state_dict_carries_what_was_fitted(speech: Speech, raws: list[Raw]) -> None:
    other = speech.spec.build(32, speech.text)
    other.load_state_dict(speech.state_dict())
    assert other.voices.known() == speech.voices.known()
    a, b = speech.example(raws[0]), other.example(raws[0])
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_example_is_short_and_exact(speech: Speech, raws: list[Raw]) -> None:
    example, raw = speech.example(raws[3]), raws[3]
    seconds = len(raw["audio"]) / raw["rate"]
    assert example["features"].shape == (-(-len(raw["audio"]) // 80), 40)
    assert abs(len(example["rows"]) - 1 - 2 - seconds * 31.25) <= 1
    assert speech.text.tokenizer.decode(example["ids"].tolist()) == raw["text"]
    loud = speech.example({**raw, "audio": raw["audio"] * 7.0})
    torch.testing.assert_close(loud["features"], example["features"], atol=1e-4, rtol=1e-4)


def test_batch_mixes_tasks_by_weight(speech: Speech, raws: list[Raw]) -> None:
    batch = batch_of(speech, raws[:12])
    assert len(batch["heard_ids"]) + len(batch["said_ids"]) == 12 and 5 <= len(batch["heard_ids"]) <= 7
    again = batch_of(speech, raws[:12])
    assert all(torch.equal(batch[k], again[k]) for k in batch)


@pytest.mark.parametrize("heard", [True, False])
def test_padding_and_batching_change_nothing(
    speech: Speech, raws: list[Raw], heard: bool, stand_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, chosen = only(raws[:6], heard=heard)
    with_spec(speech, spec, monkeypatch)
    trunk = stand_in()

    def loss(part: list[Raw]) -> tuple[float, float]:
        batch = batch_of(speech, part)
        out = speech.loss(trunk(speech.encode(batch)), batch)
        return out.total.item(), float(out.count)

    whole, parts = loss(chosen), [loss([raw]) for raw in chosen]
    assert whole[1] == pytest.approx(sum(p[1] for p in parts))
    assert whole[0] == pytest.approx(sum(p[0] for p in parts), rel=1e-4)


def test_mixed_batch_is_the_sum_of_its_tasks(speech: Speech, raws: list[Raw], stand_in: Callable[..., Any]) -> None:
    trunk, batch = stand_in(), batch_of(speech, raws[:8])
    tokens = speech.encode(batch)
    assert tokens.mask is not None and tokens.embedding.shape[:2] == tokens.mask.shape
    loss = speech.loss(trunk(tokens), batch)
    total, count = 0.0, 0.0
    for prefix in ("heard", "said"):
        part = {k: v for k, v in batch.items() if k.startswith(prefix)}
        own = speech.loss(trunk(speech.encode(part)), part)
        total, count = total + own.total.item(), count + float(own.count)
    assert loss.total.item() == pytest.approx(total, rel=1e-5) and float(loss.count) == pytest.approx(count)
    assert set(loss.metrics) == {"transcribe", "speak"}


def test_every_weight_learns_and_the_codec_does_not(
    speech: Speech, raws: list[Raw], stand_in: Callable[..., Any]
) -> None:
    batch = batch_of(speech, raws[:8])
    speech.zero_grad()
    speech.loss(stand_in()(speech.encode(batch)), batch).total.backward()
    assert [n for n, p in speech.named_parameters() if p.grad is None] == []
    assert not list(speech.codec.parameters())
    speech.zero_grad()


def test_sound_is_seen_both_ways_and_text_is_not(
    speech: Speech, raws: list[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, chosen = only(raws[:2], heard=True)
    batch = batch_of(with_spec(speech, spec, monkeypatch), chosen)
    tokens = speech.encode(batch)
    assert tokens.bidirectional is not None and tokens.position is not None and tokens.mask is not None
    length = -(-batch["heard_features"].shape[1] // 4)
    assert bool(tokens.bidirectional[:, :length].all()) and not bool(tokens.bidirectional[:, length:].any())
    for place, mask in zip(tokens.position[..., 0], tokens.mask, strict=True):
        assert place[mask].tolist() == list(range(int(mask.sum())))


def test_hidden_texts_and_speakers(speech: Speech, raws: list[Raw], monkeypatch: pytest.MonkeyPatch) -> None:
    with_spec(speech, SpeechSpec(transcribe=0, drop_text=0.5, drop_speaker=0.5), monkeypatch)
    batch = batch_of(speech, raws)
    hidden = ~batch["said_mask"].any(1)
    assert 0.3 < float(hidden.float().mean()) < 0.7
    known = sum(raw["speaker"] in speech.voices.known() for raw in raws)
    assert 0.2 < float((batch["said_speaker"] > 0).sum()) / known < 0.8
    assert bool(torch.isfinite(speech.encode(batch).embedding).all())


def test_cached_decoding_equals_the_full_pass(
    speech: Speech, raws: list[Raw], stand_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speaks greedily, then feeds what was said as a training batch: its codes are the likeliest ones there too."""
    trunk = stand_in()
    texts = ["seven", "three", "one"]
    with torch.no_grad():
        spoken = speech.speak(
            trunk.step(),
            texts,
            torch.Generator().manual_seed(0),
            temperature=0,
            max_frames=6,
        )
    with_spec(speech, SpeechSpec(transcribe=0, drop_text=0, drop_speaker=0), monkeypatch)
    for text, said in zip(texts, spoken, strict=True):
        example = {
            "ids": torch.tensor(speech.text.tokenizer.encode(text)),
            "rows": speech.frames.delayed(said.codes),
            "speaker": torch.tensor(0),
        }
        batch = speech.collate([example], torch.Generator())
        logits = speech.decode(trunk(speech.encode(batch)))
        likely = logits[0, -(batch["said_rows"].shape[1] - 1) :, :, : speech.codec.size].argmax(-1)
        wanted = batch["said_rows"][0, 1:]
        real = wanted < speech.codec.size
        assert torch.equal(likely[real], wanted[real])


def test_transcripts_do_not_depend_on_the_batch(speech: Speech, raws: list[Raw], stand_in: Callable[..., Any]) -> None:
    trunk = stand_in()
    together = speech.transcribe(trunk.step(), raws[:5], longest=6)
    alone = [speech.transcribe(trunk.step(), [r], longest=6)[0] for r in raws[:5]]
    assert together == alone and any(together)


def test_speaking_is_fixed_by_the_generator(speech: Speech, stand_in: Callable[..., Any]) -> None:
    trunk = stand_in()

    def codes(seed: int, guidance: float | None) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        settings = {"max_frames": 5, "guidance": guidance}
        return [s.codes for s in speech.speak(trunk.step(), ["two", "nine"], generator, **settings)]  # type: ignore[arg-type]

    for guidance in (None, 1.0):
        first = codes(1, guidance)
        assert all(torch.equal(a, b) for a, b in zip(first, codes(1, guidance), strict=True))
        assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, codes(2, guidance), strict=True))
    assert all(c.shape[0] == 3 and 1 <= c.shape[1] <= 5 for c in first)


def test_unknown_speakers_and_empty_texts_are_refused(speech: Speech) -> None:
    def step(tokens: Tokens) -> Tokens:
        return tokens

    with pytest.raises(ValueError, match=r"speaker: got 'en-us\+m4'.*did you mean 'en-us\+m3'"):
        speech.speak(step, ["one"], torch.Generator(), speakers=["en-us+m4"])
    with pytest.raises(ValueError, match="none of them empty"):
        speech.speak(step, ["one", ""], torch.Generator())


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "a.wav: got samples of shape .* not empty"),
        (np.zeros((10, 2), np.float32), "a.wav: got samples of shape .* mono"),
        (np.zeros(4000, np.float32), "a.wav: is silent"),
        (np.array([0.1, np.nan] * 50, np.float32), "a.wav: holds NaN"),
        (np.ones(8000 * 5, np.float32), "a.wav: lasts 5.00 s, expected at most 4 s"),
    ],
)
def test_bad_recordings_are_named(speech: Speech, audio: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speech.example({"audio": audio, "rate": 8000, "text": "one", "source": "a.wav"})


def test_other_rates_are_converted(speech: Speech, raws: list[Raw]) -> None:
    from modalities.codecs.files import resample

    raw = raws[0]
    fast = resample(torch.from_numpy(raw["audio"]), 8000, 16000).numpy()
    a, b = speech.example(raw), speech.example({**raw, "audio": fast, "rate": 16000})
    assert a["features"].shape == b["features"].shape
    assert float((a["features"] - b["features"]).abs().mean()) < 0.2


@pytest.mark.parametrize(
    "change",
    [{"subsample": 3}, {"transcribe": 0.0, "speak": 0.0}, {"delays": (1, 2)}, {"mels": 500}, {"drop_text": 1.0}],
)
def test_impossible_specs_name_the_field(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^(subsample|transcribe|delays|mels|drop_text): got"):
        SpeechSpec(**change)  # type: ignore[arg-type]


def test_statistics_stay_exact_in_bfloat16(speech: Speech, raws: list[Raw]) -> None:
    import copy

    half = copy.deepcopy(speech).to(torch.bfloat16)
    for name in ("mean", "deviation"):
        kept = half.features.get_buffer(name)
        assert kept.dtype == torch.float32 and torch.equal(kept, speech.features.get_buffer(name))
    assert half.features.project.weight.dtype == torch.bfloat16 and half.text is not speech.text
    frames = speech.example(raws[0])["features"][None]
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    assert half.features(frames, mask)[0].dtype == torch.bfloat16
