"""Notes to a standard MIDI file (format 1: a track for the tempo and one per voice)."""

from __future__ import annotations

import struct

import numpy as np

from modalities.music.score import VOICES, check_notes
from modalities.music.synth import TEMPO, held

_TICKS = 120  # per sixteenth
_VELOCITY = 80


def midi_bytes(notes: object, tempo: float = TEMPO) -> bytes:
    """The file's bytes for notes [T, 4]; equal pitches in a row are one longer note. ValueError where no score."""
    score = check_notes(notes)
    microseconds = round(60e6 / tempo)
    tracks = [_track(b"\x00\xff\x51\x03" + struct.pack(">I", microseconds)[1:])]
    tracks += [_track(_events(score, voice)) for voice in range(VOICES)]
    return b"MThd" + struct.pack(">IHHH", 6, 1, len(tracks), 4 * _TICKS) + b"".join(tracks)


def _events(score: np.ndarray, voice: int) -> bytes:
    out, now = b"", 0
    for v, pitch, first, steps in held(score):
        if v == voice:
            out += _delta(first * _TICKS - now) + bytes([0x90 | voice, pitch, _VELOCITY])
            out += _delta(steps * _TICKS) + bytes([0x80 | voice, pitch, 0])
            now = (first + steps) * _TICKS
    return out


def _track(events: bytes) -> bytes:
    body = events + b"\x00\xff\x2f\x00"
    return b"MTrk" + struct.pack(">I", len(body)) + body


def _delta(ticks: int) -> bytes:
    """A time as a variable-length quantity: seven bits a byte, the greatest first, all but the last marked."""
    out = bytes([ticks & 0x7F])
    while ticks := ticks >> 7:
        out = bytes([ticks & 0x7F | 0x80]) + out
    return out
