"""Where music comes from: Bach chorales, the embedded tunes, and one's own files.

Notes are {"notes": int [T, 4]}, recordings {"audio": float32 [n], "rate": int, "text": caption}.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalities.base import DataSpec, Raw
from modalities.codecs.files import SUFFIXES, read_audio
from modalities.manifest import read_rows
from modalities.music.files import read_notes
from modalities.music.harmonise import harmonise
from modalities.music.score import REST, VOICES, check_notes
from modalities.music.tunes import melodies
from modalities.recordings import Lazy, check_reading, of_split
from modalities.roots import data_root, find, require

CHORALES = "jsb/jsb-chorales-16th.json"
_SOURCE = "https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/master/jsb-chorales-16th.json"
_EVERY = 5  # of the embedded tunes, every fifth is for test


@dataclass(frozen=True, kw_only=True)
class ChoralesSpec(DataSpec):
    """Bach chorales in four voices (the JSB chorales in sixteenths): 229 train, 76 test. It has no keys."""

    def available(self) -> bool:
        """Whether the file is below the data root."""
        return find(CHORALES) is not None

    def build(self, split: str) -> Sequence[Raw]:
        """`train` is the file's train part, every other split its `valid` part."""
        path = require(CHORALES, "modalities.music.data.download()")
        pieces = json.loads(path.read_text(encoding="utf-8"))["train" if split == "train" else "valid"]
        return [{"notes": _filled(piece)} for piece in pieces]


def _filled(piece: Sequence[Sequence[float]]) -> np.ndarray:
    """A chorale as int64 [T, 4]; the few steps with fewer notes than voices (beginnings, pauses) end in rests."""
    return check_notes([[int(p) for p in step] + [REST] * (VOICES - len(step)) for step in piece], CHORALES)


def download() -> Path:
    """Fetches the chorales from their public source to the data root; returns the file's path."""
    path = data_root() / CHORALES
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with urllib.request.urlopen(_SOURCE, timeout=60) as answer:
        content = answer.read()
    json.loads(content)
    beside.write_bytes(content)
    return beside.replace(path)


@dataclass(frozen=True, kw_only=True)
class TunesSpec(DataSpec):
    """Twenty old tunes that come with the package, with three voices set under them by rule. It has no keys."""

    def build(self, split: str) -> Sequence[Raw]:
        """Every fifth tune is for test."""
        pieces = []
        for number, (_, key, time, melody) in enumerate(melodies()):
            if (number % _EVERY == _EVERY - 1) == (split != "train"):
                pieces.append({"notes": harmonise(melody, key, 12 if time == "3/4" else 8)})
        return pieces


@dataclass(frozen=True, kw_only=True)
class NoteFilesSpec(DataSpec):
    """Own pieces as notes.

    path      a folder of .json files (a list of steps of four MIDI pitches, 0 = rest), one such file, or a manifest
              (.jsonl or .csv) whose column names such files or, in .jsonl, holds the steps themselves
    column    the manifest's column
    test      share of the pieces held out for test; one single piece is cut at that share instead
    """

    path: str
    column: str = "notes"
    test: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.test < 1:
            raise ValueError(f"test: got {self.test}, expected more than 0 and less than 1")

    def build(self, split: str) -> Sequence[Raw]:
        """Pieces of the split. Which are held out follows from their content, so added files move none or few."""
        pieces = [self._piece(i, row[self.column]) for i, row in enumerate(self._rows(), 1)]
        train = split == "train"
        if len(pieces) == 1:
            if len(pieces[0]) == 1:
                raise ValueError(f"{self.path}: a single piece of one step cannot be split; give more steps or pieces")
            cut = min(max(round(len(pieces[0]) * (1 - self.test)), 1), len(pieces[0]) - 1)
            return [{"notes": pieces[0][:cut] if train else pieces[0][cut:]}]
        order = sorted(range(len(pieces)), key=lambda i: hashlib.sha256(pieces[i].tobytes()).digest())
        held = set(order[: max(round(len(pieces) * self.test), 1)])
        return [{"notes": piece} for i, piece in enumerate(pieces) if (i in held) != train]

    def _rows(self) -> list[dict[str, str | Path | object]]:
        return read_rows(self.path, self.column, (".json",))

    def _piece(self, number: int, value: object) -> np.ndarray:
        if isinstance(value, Path):
            return read_notes(value)
        where = f"{self.path}, row {number}"
        if isinstance(value, str):
            target = Path(self.path).parent / value
            if not target.is_file():
                raise FileNotFoundError(f"{where}: column {self.column!r} names {target}, which does not exist")
            return read_notes(target)
        return check_notes(value, where)


@dataclass(frozen=True, kw_only=True)
class MusicFilesSpec(DataSpec):
    """Own recordings of music for the representation `codec`: WAV, FLAC or OGG, any rate; channels are averaged.

    path      a folder, whose subfolders' names are captions, one recording, or a .jsonl or .csv manifest
    audio     the manifest's column with the path of the recording, relative to the manifest
    text      the manifest's column with the caption, where it has one
    rate      samples per second the recordings are brought to; best that of the codec
    seconds   longest recording; a longer one is an error
    test      share of the recordings held out for test
    """

    path: str
    audio: str = "audio"
    text: str = "text"
    rate: int = 16000
    seconds: float = 60.0
    test: float = 0.1

    def __post_init__(self) -> None:
        check_reading(self.rate, self.seconds, self.test)

    def build(self, split: str) -> Sequence[Raw]:
        """Recordings of the split. Which are held out follows from their paths below the root and nothing else."""
        root = Path(self.path)
        rows = read_rows(root, self.audio, SUFFIXES, files=(self.audio,))
        chosen = of_split(rows, self.audio, root, split, self.test)
        column = "label" if root.is_dir() else self.text

        def read(i: int) -> Raw:
            source, caption = str(chosen[i][self.audio]), chosen[i].get(column) or ""
            wave = read_audio(source, self.rate, self.seconds)
            return {"audio": wave, "rate": self.rate, "text": str(caption), "source": source}

        return Lazy(len(chosen), read)
