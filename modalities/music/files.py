"""Reading pieces from JSON, writing them as MIDI files (sound is written by `modalities.codecs.files`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modalities.music.midi import midi_bytes
from modalities.music.score import check_notes


def read_notes(path: str | Path) -> np.ndarray:
    """The piece in a JSON file, int64 [T, 4]: either the list of steps or an object with it under "notes".

    A step is four MIDI pitches, soprano first, a sixteenth note long; 0 is a rest. Raises ValueError naming the file
    and what is wrong.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); expected a list of steps of four MIDI pitches") from error
    if isinstance(content, dict):
        if "notes" not in content:
            raise ValueError(f"{path}: no key 'notes'; it has {sorted(content)}")
        content = content["notes"]
    return check_notes(content, str(path))


def write_midi(path: str | Path, notes: object) -> Path:
    """Notes [T, 4] as a MIDI file with a track per voice, written beside and renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(midi_bytes(notes))
    return beside.replace(path)
