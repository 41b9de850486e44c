"""Where recordings come from: fsdd, the embedded pack of spoken digits, one's own files."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from modalities.base import DataSpec, Raw
from modalities.codecs.files import SUFFIXES, read_audio
from modalities.manifest import read_rows
from modalities.recordings import Lazy, check_reading, of_split
from modalities.roots import data_root, find, require

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDINGS = "fsdd/recordings"
SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"


@dataclass(frozen=True, kw_only=True)
class FSDDSpec(DataSpec):
    """The Free Spoken Digit Dataset: English digits at 8 kHz; takes 0-4 are the test part, 5-49 train.

    speakers   names of the speakers taken (empty: all; the default are those that published figures here refer to)
    """

    speakers: tuple[str, ...] = ("george", "jackson", "lucas", "nicolas", "theo")

    def available(self) -> bool:
        """Whether the recordings are below the data root."""
        return find(RECORDINGS) is not None

    def build(self, split: str) -> Sequence[Raw]:
        """Recordings of the split, sorted by file name; the text is the digit's word. "validation" is "test"."""
        folder = require(RECORDINGS, "modalities.speech.data.download()")
        named = [(path, path.stem.split("_")) for path in sorted(folder.glob("*_*_*.wav"))]
        rows = [
            (path, int(digit), speaker)
            for path, (digit, speaker, take) in named
            if (int(take) >= 5) == (split == "train") and speaker in (self.speakers or (speaker,))
        ]
        if not rows:
            known = sorted({name[1] for _, name in named})
            raise ValueError(f"speakers: got {list(self.speakers)}, found {known} in {folder}")

        def read(i: int) -> Raw:
            path, digit, speaker = rows[i]
            audio = read_audio(path, 8000)
            return {"audio": audio, "rate": 8000, "text": WORDS[digit], "speaker": speaker, "source": str(path)}

        return Lazy(len(rows), read)


@dataclass(frozen=True, kw_only=True)
class SpokenDigitsSpec(DataSpec):
    """720 digits spoken by six espeak-ng voices at 8 kHz; they come with the package. It has no keys.

    One voice is the test part: nobody trains on it.
    """

    def build(self, split: str) -> Sequence[Raw]:
        """Recordings of the split in the pack's order; the text is the digit's word. "validation" is "test"."""
        audio, index = _pack()
        rows = [row for row in index["rows"] if bool(row[2]) != (split == "train")]

        def read(i: int) -> Raw:
            digit, voice, _, start, length = rows[i]
            wave, speaker = audio[start : start + length], index["voices"][voice]
            source = f"spoken_digits[{i}]"
            return {"audio": wave, "rate": index["rate"], "text": WORDS[digit], "speaker": speaker, "source": source}

        return Lazy(len(rows), read)


@dataclass(frozen=True, kw_only=True)
class SpeechFilesSpec(DataSpec):
    """Own recordings with their texts: WAV, FLAC or OGG, any rate, mono or more channels (which are averaged).

    path      a .jsonl or .csv manifest, or a folder whose subfolders are named by what is said in them
    audio     the manifest's column with the path of the recording, relative to the manifest
    text      the manifest's column with what is said
    speaker   the manifest's column with the speaker's name, where it has one
    rate      samples per second the recordings are brought to
    seconds   longest recording; a longer one is an error
    test      share of the recordings held out for test
    """

    path: str
    audio: str = "audio"
    text: str = "text"
    speaker: str = "speaker"
    rate: int = 8000
    seconds: float = 4.0
    test: float = 0.1

    def __post_init__(self) -> None:
        check_reading(self.rate, self.seconds, self.test)

    def build(self, split: str) -> Sequence[Raw]:
        """Recordings of the split. Which are held out follows from their paths below the root and nothing else."""
        root = Path(self.path)
        rows = read_rows(root, self.audio, SUFFIXES, files=(self.audio,), needs=() if root.is_dir() else (self.text,))
        column = "label" if root.is_dir() else self.text
        silent = next((row[self.audio] for row in rows if not row.get(column)), None)
        if silent is not None:
            raise ValueError(f"{silent}: no text; put it into a folder named by what is said, or write a manifest")
        chosen = of_split(rows, self.audio, root, split, self.test)

        def read(i: int) -> Raw:
            row = chosen[i]
            wave = read_audio(Path(str(row[self.audio])), self.rate, self.seconds)
            raw: dict[str, object] = {"audio": wave, "rate": self.rate, "text": str(row[column])}
            if row.get(self.speaker):
                raw["speaker"] = str(row[self.speaker])
            return raw | {"source": str(row[self.audio])}

        return Lazy(len(chosen), read)


@lru_cache(maxsize=1)
def _pack() -> tuple[np.ndarray, dict[str, list]]:  # type: ignore[type-arg]
    """The embedded pack: samples [n] float32 and its index."""
    import soundfile

    folder = resources.files("modalities.speech") / "embedded"
    audio, _ = soundfile.read(io.BytesIO((folder / "digits.ogg").read_bytes()), dtype="float32")
    return audio, json.loads((folder / "digits.json").read_text(encoding="utf-8"))


def download() -> Path:
    """Fetches fsdd from its public repository to the data root; returns the folder of the recordings.

    Recordings are written beside and moved into place at the end, so a broken download leaves nothing behind that
    looks like the set. An existing set is left as it is.
    """
    target = data_root() / RECORDINGS
    if target.exists():
        return target
    beside = target.with_name(f".recordings.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        with urllib.request.urlopen(SOURCE, timeout=60) as answer:
            packed = io.BytesIO(answer.read())
        with tarfile.open(fileobj=packed) as archive:
            for member in archive:
                name = Path(member.name)
                file = archive.extractfile(member) if member.isfile() and name.parent.name == "recordings" else None
                if file is not None and name.suffix == ".wav":
                    (beside / name.name).write_bytes(file.read())
        os.replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target
