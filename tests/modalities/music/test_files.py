"""Reading JSON, sound from notes, MIDI."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modalities.music.files import read_notes, write_midi
from modalities.music.midi import midi_bytes
from modalities.music.synth import held, synthesise

CHORD = [69, 64, 60, 45]


def test_notes_are_read_from_a_list_or_an_object(tmp_path: Path) -> None:
    for content in ([CHORD], {"notes": [CHORD]}):
        path = tmp_path / "piece.json"
        path.write_text(json.dumps(content))
        assert read_notes(path).tolist() == [CHORD]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[[60, 64", "not JSON"),
        ('{"pitches": []}', "no key 'notes'; it has"),
        ("[]", "empty"),
        ("[[60, 64, 67]]", "expected .steps, 4"),
        ("[[60.5, 64, 67, 70]]", "expected integers"),
    ],
)
def test_a_broken_file_is_named(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"broken\.json: .*{says}"):
        read_notes(path)


def test_equal_pitches_in_a_row_are_one_note() -> None:
    notes = np.array([[60, 0, 0, 0], [60, 0, 0, 0], [62, 0, 0, 40], [0, 0, 0, 40], [62, 0, 0, 41]])
    assert list(held(notes)) == [(0, 60, 0, 2), (0, 62, 2, 1), (0, 62, 4, 1), (3, 40, 2, 2), (3, 41, 4, 1)]


def test_sound_has_its_length_loudness_and_pitch() -> None:
    audio = synthesise([[69, 0, 0, 0]] * 16)
    assert audio.dtype == np.float32 and len(audio) == round((16 * 0.15 + 0.12) * 16_000)
    assert np.abs(audio).max() == pytest.approx(0.9) and np.isfinite(audio).all()
    spectrum = np.abs(np.fft.rfft(audio[8000:24000]))
    assert spectrum.argmax() == 440  # one second: the bins are hertz


def test_a_held_note_has_no_second_attack() -> None:
    tied, apart = synthesise([[69, 0, 0, 0]] * 8), synthesise([[69, 0, 0, 0]] * 4 + [[0] * 4] + [[69, 0, 0, 0]] * 3)
    quiet = slice(round(0.74 * 16_000), round(0.75 * 16_000))  # at the end of the rest
    assert np.abs(tied[quiet]).max() > 3 * np.abs(apart[quiet]).max()


def test_silence_and_high_notes_stay_finite() -> None:
    assert not synthesise([[0, 0, 0, 0]] * 3).any()
    assert np.isfinite(synthesise([[127, 126, 125, 1]] * 3)).all()


def test_midi_bytes_are_the_standard() -> None:
    data = midi_bytes([[60, 0, 0, 0], [60, 0, 0, 0], [62, 0, 0, 0]], tempo=120)
    assert data[:14] == b"MThd\x00\x00\x00\x06\x00\x01\x00\x05\x01\xe0"  # format 1, 5 tracks, 480 ticks a quarter
    assert b"\x00\xff\x51\x03\x07\xa1\x20" in data  # 500,000 microseconds a quarter
    # 240 ticks are the variable-length bytes 81 70
    soprano = b"\x00\x90\x3c\x50\x81\x70\x80\x3c\x00\x00\x90\x3e\x50\x78\x80\x3e\x00\x00\xff\x2f\x00"
    assert b"MTrk" + len(soprano).to_bytes(4, "big") + soprano in data
    assert data.count(b"MTrk") == 5


def test_midi_is_written_beside_and_renamed(tmp_path: Path) -> None:
    path = write_midi(tmp_path / "deep" / "a.mid", [CHORD])
    assert path.read_bytes() == midi_bytes([CHORD]) and [p.name for p in path.parent.iterdir()] == ["a.mid"]
    with pytest.raises(ValueError, match="empty"):
        write_midi(path, [])
    assert path.read_bytes() == midi_bytes([CHORD])
