"""Notes to sound: additive synthesis with an envelope, in numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modalities.music.score import REST, check_notes

RATE = 16_000
TEMPO = 100.0  # quarter notes per minute
_PARTIALS = (1.0, 0.45, 0.28, 0.14, 0.08, 0.04)
_LOUDNESS = (1.0, 0.7, 0.7, 0.9)  # per voice, outer voices to the front
_ATTACK, _RELEASE = 0.02, 0.12  # seconds
_PEAK = 0.9


def held(notes: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """(voice, pitch, first step, steps) of each note; equal pitches in a row are one longer note, rests are none."""
    for voice in range(notes.shape[1]):
        line = notes[:, voice]
        edges = np.flatnonzero(np.diff(line)) + 1
        for first, last in zip([0, *edges.tolist()], [*edges.tolist(), len(line)], strict=True):
            if line[first] != REST:
                yield voice, int(line[first]), first, last - first


def synthesise(notes: object, rate: int = RATE, tempo: float = TEMPO) -> np.ndarray:
    """Sound float32 [n] in -0.9..0.9 of notes [T, 4]: a step lasts 15 / tempo seconds, the last note rings out.

    Raises ValueError on notes that are no score.
    """
    score = check_notes(notes)
    step = 15.0 / tempo
    sound = np.zeros(round((len(score) * step + _RELEASE) * rate), dtype=np.float64)
    for voice, pitch, first, steps in held(score):
        tone = _tone(pitch, steps * step, rate) * _LOUDNESS[voice]
        at = round(first * step * rate)
        sound[at : at + len(tone)] += tone[: len(sound) - at]
    peak = np.abs(sound).max(initial=0.0)
    return (sound * (_PEAK / peak if peak else 1.0)).astype(np.float32)


def _tone(pitch: int, seconds: float, rate: int) -> np.ndarray:
    """One note with its release; partials above half the sampling rate are left out, higher ones die faster."""
    time = np.arange(round((seconds + _RELEASE) * rate)) / rate
    frequency = 440.0 * 2.0 ** ((pitch - 69) / 12)
    wave = np.zeros_like(time)
    for number, amplitude in enumerate(_PARTIALS, 1):
        if number * frequency < rate / 2:
            wave += amplitude * np.sin(2 * np.pi * number * frequency * time) * np.exp(-0.7 * number * time)
    return wave * np.clip(time / _ATTACK, 0, 1) * np.clip((seconds + _RELEASE - time) / _RELEASE, 0, 1)
