"""The built-in codec: log-mel frames, residual vector quantisation by k-means, Griffin-Lim."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from modalities.codecs.base import Codec
from modalities.codecs.mel import FLOOR, LogMel
from modalities.codecs.spec import LogMelRVQSpec


class LogMelRVQ(Codec):
    """Codes are the nearest entries of C codebooks, each fitted to what the ones before it left over.

    Residual vector quantisation after Zeghidour et al. 2021 (SoundStream, section III-C), with mel frames in place of
    learned ones and k-means in place of training.
    """

    entries: Tensor

    def __init__(self, spec: LogMelRVQSpec) -> None:
        frame_rate = spec.rate / (spec.hop * spec.group)
        super().__init__(rate=spec.rate, frame_rate=frame_rate, codebooks=spec.codebooks, size=spec.size, fitted=False)
        self.spec = spec
        self.mel = LogMel(rate=spec.rate, window=spec.window, hop=spec.hop, mels=spec.mels)
        self.register_buffer("entries", torch.zeros(spec.codebooks, spec.size, spec.group * spec.mels))

    @torch.no_grad()
    def fit(self, audios: Iterable[Tensor]) -> None:
        """k-means, codebook after codebook, on at most `vectors` frames of the waveforms [n]; deterministic by `seed`.

        Raises ValueError where the recordings hold fewer frames than a codebook has entries, or NaN.
        """
        vectors: list[Tensor] = []
        held = 0
        for audio in audios:
            if not bool(torch.isfinite(audio).all()):
                raise ValueError(f"audios: recording {len(vectors)} holds NaN or infinite samples; clean it first")
            vectors.append(self._vectors(audio[None].to(self.entries.device))[0])
            held += len(vectors[-1])
            if held >= self.spec.vectors:
                break
        if held < self.size:
            raise ValueError(
                f"audios: got {held} frames in {len(vectors)} recordings, expected at least size = {self.size}; "
                "give more recordings or a smaller codebook"
            )
        rest = torch.cat(vectors)[: self.spec.vectors]
        generator = torch.Generator().manual_seed(self.spec.seed)
        for c in range(self.codebooks):
            self.entries[c] = k_means(rest, self.size, self.spec.iterations, generator)
            rest = rest - self.entries[c][nearest(rest, self.entries[c])]
        self.fitted.fill_(True)

    def _vectors(self, audio: Tensor) -> Tensor:
        """[B, n] -> [B, F, group * mels]; a last incomplete group is filled up with silence."""
        frames = self.mel(audio)
        short = -frames.shape[1] % self.spec.group
        frames = F.pad(frames, (0, 0, 0, short), value=math.log(FLOOR))
        return frames.unflatten(1, (-1, self.spec.group)).flatten(2)

    def _encode(self, audio: Tensor) -> Tensor:
        rest = self._vectors(audio)
        codes = []
        for entries in self.entries:
            codes.append(nearest(rest.flatten(0, 1), entries).view(rest.shape[:2]))
            rest = rest - entries[codes[-1]]
        return torch.stack(codes, dim=1)

    def _decode(self, codes: Tensor) -> Tensor:
        vectors = sum((entries[codes[:, c]] for c, entries in enumerate(self.entries)), torch.zeros(()))
        frames = vectors.unflatten(2, (self.spec.group, self.spec.mels)).flatten(1, 2)
        return self.mel.invert(frames, self.spec.griffin, self.spec.seed)


def nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """Index [N] of the nearest entry [K, D] of each vector [N, D], the lower index on a tie."""
    return (entries.square().sum(1) - 2 * vectors @ entries.T).argmin(1)


def k_means(vectors: Tensor, size: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Entries [size, D] of vectors [N, D], N >= size: Lloyd's rounds from random vectors; an entry nobody chose moves
    to one of the vectors farthest from theirs."""
    entries = vectors[torch.randperm(len(vectors), generator=generator)[:size]].clone()
    for _ in range(iterations):
        chosen = nearest(vectors, entries)
        counts = torch.bincount(chosen, minlength=size)
        sums = torch.zeros_like(entries).index_add_(0, chosen, vectors)
        distance = (vectors - entries[chosen]).square().sum(1)
        entries = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        entries[empty] = vectors[distance.topk(len(empty)).indices]
    return entries
