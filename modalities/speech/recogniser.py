"""Judges that know nothing of the model: a recogniser of spoken words and the nearest class mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modalities.codecs.files import resample
from modalities.codecs.mel import LogMel

RATE = 8000
FRAMES = 24  # every recording is stretched to so many frames


def classes(texts: Sequence[str], most: int = 100) -> list[str]:
    """The distinct texts, sorted. Raises ValueError beyond `most`: words are told apart here, not sentences."""
    found = sorted(set(texts))
    if not 2 <= len(found) <= most:
        raise ValueError(f"text: got {len(found)} distinct texts in training, expected 2..{most} words to evaluate on")
    return found


class Recogniser:
    """A support-vector machine on log-mel frames of real recordings, each stretched to 24 frames and one level."""

    def __init__(self, audios: Sequence[tuple[Tensor, int]], texts: Sequence[str]) -> None:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        self._mel = LogMel(rate=RATE, window=256, hop=80, mels=40)
        self._judge: Any = make_pipeline(StandardScaler(), SVC(C=10.0))
        self._judge.fit(self._rows(audios), list(texts))

    def __call__(self, audios: Sequence[tuple[Tensor, int]]) -> list[str]:
        """The word in each (waveform [n], rate)."""
        return [str(word) for word in self._judge.predict(self._rows(audios))]

    def _rows(self, audios: Sequence[tuple[Tensor, int]]) -> np.ndarray:
        return np.stack([self._row(resample(audio, rate, RATE)) for audio, rate in audios])

    def _row(self, audio: Tensor) -> np.ndarray:
        level = audio.square().mean().sqrt().clamp(min=1e-6)
        frames = self._mel((audio * (0.1 / level))[None])
        return F.interpolate(frames.transpose(1, 2), size=FRAMES, mode="linear").flatten().numpy()


def nearest_class_mean(train: Tensor, texts: Sequence[str], test: Tensor) -> list[str]:
    """The class whose mean over train rows [N, D] is nearest to each test row [M, D]."""
    names = sorted(set(texts))
    index = torch.tensor([names.index(t) for t in texts])
    means = torch.stack([train[index == i].mean(0) for i in range(len(names))])
    return [names[i] for i in torch.cdist(test, means).argmin(1).tolist()]
