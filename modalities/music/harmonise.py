"""Three voices under a melody, by rule: the triad of the key that covers half a bar best, sung close under the tune."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modalities.music.score import BAR

_MAJOR = ((0, (0, 4, 7)), (7, (7, 11, 2)), (5, (5, 9, 0)), (9, (9, 0, 4)), (2, (2, 5, 9)))
_MINOR = ((0, (0, 3, 7)), (7, (7, 11, 2)), (5, (5, 8, 0)), (3, (3, 7, 10)), (10, (10, 2, 5)), (8, (8, 0, 3)))
_TONIC = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_LOWEST_BASS = 41


def harmonise(melody: Sequence[int], key: str, unit: int = BAR // 2) -> np.ndarray:
    """Four voices [T, 4] int64 from a melody (one pitch per sixteenth, 0 = rest) in `key` ("G" major, "a" minor).

    Per `unit` sixteenths one triad, whose tones cover the melody longest (the first of the list on a tie: tonic,
    dominant, subdominant ...; the last unit takes the tonic). Alto and tenor take the chord tones next below, the bass
    the root. Where the melody rests, all rest.
    """
    chords = _MAJOR if key.isupper() else _MINOR
    tonic = _TONIC[key.upper()]
    out = np.zeros((len(melody), 4), dtype=np.int64)
    for start in range(0, len(melody), unit):
        part = list(melody[start : start + unit])
        last = start + unit >= len(melody)
        root, tones = chords[0] if last else max(chords, key=lambda c: sum((p - tonic) % 12 in c[1] for p in part if p))
        triad = {(t + tonic) % 12 for t in tones}
        bass = _LOWEST_BASS + (root + tonic - _LOWEST_BASS) % 12
        for i, pitch in enumerate(part):
            if pitch:
                alto = _below(pitch, triad)
                out[start + i] = pitch, alto, _below(alto, triad), bass
    return out


def _below(pitch: int, triad: set[int]) -> int:
    """The next chord tone under `pitch`."""
    return next(p for p in range(pitch - 1, 0, -1) if p % 12 in triad)
