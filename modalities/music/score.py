"""A score: four voices as MIDI pitches per sixteenth note, checked, and what a model reads from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

VOICES = 4
PITCHES = 128
REST = 0
START = 128  # stands for "before the first step"; only ever read, never predicted
BAR = 16  # sixteenths in a bar
OLDEST = 16  # a note held for longer counts as this old


def check_notes(notes: object, where: str = "notes") -> np.ndarray:
    """A score as int64 [T, 4], pitches 1..127 with 0 as rest; raises ValueError saying what is wrong and where."""
    try:
        array = np.asarray(notes)
    except ValueError as error:
        raise ValueError(f"{where}: steps of unequal length, expected {VOICES} voices each (0 is a rest)") from error
    if array.size == 0:
        raise ValueError(f"{where}: the piece is empty, expected at least one step of {VOICES} pitches")
    if array.ndim != 2 or array.shape[1] != VOICES:
        raise ValueError(
            f"{where}: got shape {list(array.shape)}, expected [steps, {VOICES}]; fill a missing voice with 0 (rest)"
        )
    if array.dtype.kind not in "iu":
        raise ValueError(f"{where}: got {array.dtype}, expected integers (MIDI pitches 0..127, 0 is a rest)")
    bad = np.argwhere((array < 0) | (array >= PITCHES))
    if len(bad):
        step, voice = bad[0].tolist()
        raise ValueError(
            f"{where}: pitch {array[step, voice]} at step {step}, voice {voice}; expected 0..127 (0 rests)"
        )
    return array.astype(np.int64)


def readings(notes: Tensor) -> dict[str, Tensor]:
    """What the model reads before each step, and before the one after the last.

    From notes [T, 4] to rows 0..T, row t standing before step t:
    input     [T+1, 4]  the step before (START in row 0)
    previous  [T+1, 4]  the one before that (START in rows 0 and 1)
    age       [T+1, 4]  for how many steps the input pitch has been held, 1..16, 0 in row 0
    beat      [T+1]     place of step t in its bar, the piece starting on one
    """
    start = notes.new_full((1, VOICES), START)
    padded = torch.cat([start, start, notes])
    index = torch.arange(len(notes) + 1).unsqueeze(1)
    changed = torch.cat([torch.ones(1, VOICES, dtype=torch.bool), padded[2:] != padded[1:-1]])
    onset = torch.where(changed, index, 0).cummax(dim=0).values
    age = (index - onset + 1).clamp(max=OLDEST)
    age[0] = 0
    return {"input": padded[1:], "previous": padded[:-1], "age": age, "beat": index[:, 0] % BAR}


def transpose(notes: Tensor, shift: int) -> Tensor:
    """Sounding pitches moved by `shift` semitones; rests and START stay."""
    return torch.where((notes > REST) & (notes < START), notes + shift, notes)
