"""Reading and writing audio files, with errors that name the file and what was expected."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".wav", ".flac", ".ogg")


def read_audio(path: str | Path, rate: int, seconds: float | None = None) -> np.ndarray:
    """An audio file as float32 [n] at `rate` samples per second; several channels are averaged.

    Raises FileNotFoundError where there is no file, ValueError where it cannot be decoded, is empty, holds NaN, or is
    longer than `seconds`.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such audio file")
    try:
        info = soundfile.info(str(path))
        if seconds is not None and info.duration > seconds:
            raise ValueError(
                f"{path}: lasts {info.duration:.2f} s, expected at most {seconds:g} s; cut it, or raise `seconds`"
            )
        audio, found = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: not a readable audio file ({size} bytes: {error.error_string}); expected WAV, FLAC or OGG"
        ) from error
    if len(audio) == 0:
        raise ValueError(f"{path}: holds no samples")
    if not np.isfinite(audio).all():
        raise ValueError(f"{path}: holds NaN or infinite samples; export the recording again")
    return resample(torch.from_numpy(audio.mean(axis=1)), found, rate).numpy()


def resample(audio: Tensor, found: int, rate: int) -> Tensor:
    """Waveform [.., n] from `found` to `rate` samples per second (windowed sinc, torchaudio)."""
    if found == rate:
        return audio
    from torchaudio.functional import resample as convert

    out: Tensor = convert(audio, found, rate)
    return out


def write_wav(path: str | Path, audio: Tensor | np.ndarray, rate: int, *, peak: float = 0.95) -> Path:
    """Writes a waveform [n] as 16-bit mono WAV: beside, then renamed. Louder than `peak`, it is scaled down to it.

    Raises ValueError on an empty or non-finite waveform; the old file then stays as it was.
    """
    import soundfile

    path = Path(path)
    wave = np.array(audio.detach().cpu().numpy() if isinstance(audio, Tensor) else audio, dtype=np.float32)
    if wave.ndim != 1 or wave.size == 0:
        raise ValueError(f"{path}: got audio of shape {list(wave.shape)}, expected [samples], not empty")
    if not np.isfinite(wave).all():
        raise ValueError(f"{path}: the audio holds NaN or infinite samples, nothing written")
    wave *= min(1.0, peak / max(float(np.abs(wave).max()), 1e-9))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        soundfile.write(str(beside), wave, rate, subtype="PCM_16", format="WAV")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path
