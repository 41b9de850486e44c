"""The baseline: each voice (or codebook) on its own, the next symbol given the last one of that voice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WEIGHTS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FLOORS = (0.01, 0.1, 1.0)


class Bigram:
    """Counts over pieces [T, V] of symbols below `size`, smoothed towards the voice's own unigram.

    p(b | a) = (n(a, b) + w u(b)) / (n(a) + w) with u(b) = (n(b) + f) / (n + f size); before the first step stands a
    symbol of its own. w and f are those that do best on every tenth training piece when the others are counted; then
    all are counted. One piece alone is split in time instead.
    """

    def __init__(self, pieces: Sequence[np.ndarray], size: int) -> None:
        self.size = size
        if len(pieces) == 1:
            cut = max(len(pieces[0]) * 9 // 10, 1)
            kept, held = [pieces[0][:cut]], [pieces[0][cut:]]
        else:
            kept = [p for i, p in enumerate(pieces) if i % 10]
            held = [p for i, p in enumerate(pieces) if not i % 10]
        counted, wanted = self._count(kept), self._count(held)
        settings = [(w, f) for w in _WEIGHTS for f in _FLOORS]
        self.weight, self.floor = min(settings, key=lambda s: _bits(counted, wanted, *s))
        self.counts = self._count(pieces)

    def bits(self, pieces: Sequence[np.ndarray]) -> float:
        """Mean bits per symbol of pieces [T, V]."""
        return _bits(self.counts, self._count(pieces), self.weight, self.floor)

    def _count(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """n(voice, last, next) [V, size + 1, size]."""
        voices = pieces[0].shape[1]
        out = np.zeros((voices, self.size + 1, self.size))
        for piece in pieces:
            last = np.concatenate([np.full((1, voices), self.size), piece[:-1]])
            np.add.at(out, (np.arange(voices), last, piece), 1)
        return out


def _bits(counts: np.ndarray, wanted: np.ndarray, weight: float, floor: float) -> float:
    unigram = counts.sum(axis=1) + floor
    unigram /= unigram.sum(axis=1, keepdims=True)
    chance = (counts + weight * unigram[:, None]) / (counts.sum(axis=2, keepdims=True) + weight)
    return float(-(wanted * np.log2(chance)).sum() / max(wanted.sum(), 1))
