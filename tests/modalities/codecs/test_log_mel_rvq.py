"""The built-in codec: frames that do not depend on the batch, a fit by seed, sound that comes back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modalities.codecs.base import Codec
from modalities.codecs.log_mel_rvq import k_means, nearest
from modalities.codecs.mel import LogMel
from modalities.codecs.spec import LogMelRVQSpec

SPEC = LogMelRVQSpec(mels=24, codebooks=3, size=16, griffin=16)


def tone(pitch: float, seconds: float = 0.5) -> Tensor:
    time = torch.arange(int(8000 * seconds)) / 8000
    return 0.2 * torch.sin(2 * math.pi * pitch * time)


@pytest.fixture(scope="module")
def codec() -> Codec:
    codec = SPEC.build()
    codec.fit(tone(p) for p in torch.linspace(200, 3000, 40).tolist())
    return codec


def test_shapes_and_range(codec: Codec) -> None:
    assert (codec.rate, codec.codebooks, codec.size, codec.frame_rate) == (8000, 3, 16, 31.25)
    codes = codec.encode(tone(440))
    assert codes.shape == (3, math.ceil(4000 / 256)) and codes.dtype == torch.int64
    sound = codec.decode(codes)
    assert sound.shape == (codes.shape[1] * 256,) and bool(torch.isfinite(sound).all())


def test_batch_changes_nothing(codec: Codec) -> None:
    rows = torch.stack([tone(300), tone(900), tone(2500)])
    codes = codec.encode(rows)
    assert all(torch.equal(codec.encode(row), code) for row, code in zip(rows, codes, strict=True))
    sound = codec.decode(codes)
    torch.testing.assert_close(codec.decode(codes[1]), sound[1], atol=1e-4, rtol=1e-3)


def test_pitch_survives(codec: Codec) -> None:
    for pitch in (400.0, 1200.0, 2600.0):
        spectrum = torch.fft.rfft(codec.decode(codec.encode(tone(pitch)))[:4000]).abs()
        found = float(spectrum.argmax()) * 8000 / 4000
        assert abs(found - pitch) < 0.1 * pitch + 60


def test_more_codebooks_leave_less(codec: Codec) -> None:
    frames = codec._vectors(tone(700)[None])  # type: ignore[operator]
    rest, errors = frames, [float(frames.square().mean())]
    for entries, code in zip(codec.entries, codec.encode(tone(700)), strict=True):  # type: ignore[arg-type]
        rest = rest - entries[code]
        errors.append(float(rest.square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5


def test_fit_is_fixed_by_the_seed(codec: Codec) -> None:
    again = SPEC.build()
    again.fit(tone(p) for p in torch.linspace(200, 3000, 40).tolist())
    assert torch.equal(again.state_dict()["entries"], codec.state_dict()["entries"])
    loaded = SPEC.build()
    loaded.load_state_dict(codec.state_dict())
    assert torch.equal(loaded.encode(tone(500)), codec.encode(tone(500)))


def test_stays_in_float32(codec: Codec) -> None:
    other = SPEC.build()
    other.load_state_dict(codec.state_dict())
    other.to(torch.bfloat16)
    assert torch.equal(other.encode(tone(500)), codec.encode(tone(500)))


def test_empty_entries_are_used_again() -> None:
    vectors = torch.cat([torch.zeros(50, 2), torch.randn(14, 2, generator=torch.Generator().manual_seed(0))])
    entries = k_means(vectors, 8, 20, torch.Generator().manual_seed(0))
    assert len(nearest(vectors, entries).unique()) >= 7


def test_mel_of_a_full_scale_sine_and_of_silence() -> None:
    mel = LogMel(rate=8000, window=400, hop=128, mels=24)
    frames = mel(5 * tone(1000)[None])[0, 4:-4]
    assert 0.5 < float(frames.exp().max()) < 1.5
    torch.testing.assert_close(mel(torch.zeros(1, 1000)), torch.full((1, 8, 24), math.log(1e-3)))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(0), "not empty"),
        (torch.full((100,), float("nan")), "NaN"),
        (torch.zeros(2, 1, 100), r"expected \[samples\]"),
    ],
)
def test_bad_audio_is_refused(codec: Codec, audio: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode(audio)


def test_bad_codes_are_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.\.15"):
        codec.decode(torch.full((3, 4), 16))
    with pytest.raises(ValueError, match=r"expected \[3, frames\]"):
        codec.decode(torch.zeros(2, 4, dtype=torch.int64))


def test_fit_needs_enough_and_use_needs_fit() -> None:
    with pytest.raises(RuntimeError, match="fit"):
        SPEC.build().encode(tone(440))
    with pytest.raises(ValueError, match="recording 1 holds NaN"):
        SPEC.build().fit([tone(440), tone(440) * torch.nan])
    with pytest.raises(ValueError, match="at least size = 16"):
        SPEC.build().fit([tone(440, 0.1)])


@pytest.mark.parametrize("change", [{"size": 1}, {"mels": 200}, {"window": 128}, {"codebooks": 0}, {"rate": 10}])
def test_impossible_specs_name_the_field(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^(size|mels|window|codebooks|rate): got"):
        LogMelRVQSpec(**change)
