"""Audio files: what is read, what is refused and how, and that a failed write leaves the old file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from modalities.codecs.files import read_audio, write_wav


def sine(rate: int, seconds: float = 0.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_stereo_and_rate_are_converted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([sine(16000), 0 * sine(16000)], axis=1), 16000)
    audio = read_audio(path, 8000)
    assert audio.shape == (4000,) and audio.dtype == np.float32
    np.testing.assert_allclose(audio[200:-200], 0.5 * sine(8000)[200:-200], atol=2e-3)


def test_round_trip_and_peak(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "deep" / "a.wav", sine(8000), 8000)
    np.testing.assert_allclose(read_audio(path, 8000), sine(8000), atol=1e-4)
    write_wav(path, 10 * sine(8000), 8000)
    assert abs(float(np.abs(read_audio(path, 8000)).max()) - 0.95) < 0.01
    assert [p.name for p in path.parent.iterdir()] == ["a.wav"]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sine(8000), 8000)
    before = path.read_bytes()
    for bad in (np.array([0.1, np.nan], np.float32), np.zeros(0, np.float32)):
        with pytest.raises(ValueError, match=r"a\.wav"):
            write_wav(path, bad, 8000)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_bad_files_are_named(tmp_path: Path) -> None:
    corrupt, empty, nan, long = (tmp_path / f"{n}.wav" for n in ("corrupt", "empty", "nan", "long"))
    corrupt.write_bytes(b"RIFF not a wave")
    soundfile.write(empty, np.zeros(0, np.float32), 8000)
    soundfile.write(nan, np.array([0.0, np.nan], np.float32), 8000, subtype="FLOAT")
    soundfile.write(long, sine(8000, 2.0), 8000)
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        read_audio(tmp_path / "missing.wav", 8000)
    with pytest.raises(ValueError, match=r"corrupt.wav: not a readable audio file .* expected WAV"):
        read_audio(corrupt, 8000)
    with pytest.raises(ValueError, match=r"empty.wav: holds no samples"):
        read_audio(empty, 8000)
    with pytest.raises(ValueError, match=r"nan.wav: holds NaN"):
        read_audio(nan, 8000)
    with pytest.raises(ValueError, match=r"long.wav: lasts 2.00 s, expected at most 1 s"):
        read_audio(long, 8000, 1.0)
