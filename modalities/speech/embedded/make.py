"""Makes the pack of spoken digits again: `python -m modalities.speech.embedded.make` (needs espeak-ng on the PATH).

Six voices (accents of English with espeak-ng's voice variants) say the ten digits at four speeds and three pitches: 720
recordings at 8 kHz, cut to where there is sound, brought to one level and joined to one Ogg Vorbis file. One of the six
voices is the test part. The espeak-ng program is GPL-3.0; the sound it makes is not a work derived from it, and this
pack is licensed as the project is.
"""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import numpy as np
import torch

from modalities.codecs.files import resample

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = ("en-us+m3", "en-us+f2", "en-gb+m1", "en-gb-x-rp+f4", "en-gb-scotland+m7", "en-029+f1")
SPEEDS = (120, 145, 170, 200)  # words per minute
PITCHES = (30, 50, 70)  # espeak-ng's scale of 0 .. 99
TEST = "en-gb-x-rp+f4"  # a voice nobody trains on
RATE = 8000
GAP = 160  # zeros between recordings: 20 ms
LEVEL = 0.1


def say(word: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """One word as float32 [n] at 8 kHz, cut where it is more than 40 dB below its peak, at one level."""
    import soundfile

    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    audio, rate = soundfile.read(io.BytesIO(spoken), dtype="float32")
    audio = resample(torch.from_numpy(audio), rate, RATE).numpy()
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    audio = audio[loud[0] : loud[-1] + 1]
    return np.clip(audio * (LEVEL / np.sqrt(np.mean(audio**2))), -0.99, 0.99).astype(np.float32)


def main(folder: Path) -> None:
    """Writes digits.ogg and digits.json into `folder`."""
    import soundfile

    rows, pieces, start = [], [], 0
    for voice in VOICES:
        for speed in SPEEDS:
            for pitch in PITCHES:
                for digit, word in enumerate(WORDS):
                    audio = say(word, voice, speed, pitch)
                    rows.append([digit, VOICES.index(voice), int(voice == TEST), start, len(audio)])
                    pieces += [audio, np.zeros(GAP, np.float32)]
                    start += len(audio) + GAP
    with soundfile.SoundFile(
        folder / "digits.ogg", "w", RATE, 1, format="OGG", subtype="VORBIS", compression_level=0.9
    ) as out:
        for piece in pieces:  # in pieces: one long write overflows libsndfile's Vorbis encoder
            out.write(piece)
    index = {"rate": RATE, "voices": VOICES, "columns": ["digit", "voice", "test", "start", "length"], "rows": rows}
    (folder / "digits.json").write_text(json.dumps(index, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).parent)
