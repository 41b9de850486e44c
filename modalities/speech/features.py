"""The input side: a recording's log-mel frames to a few tokens of width D."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.codecs.mel import LogMel
from modalities.precise import never_narrower
from modalities.speech.spec import SpeechSpec


class Features(nn.Module):
    """Normalised log-mel frames and the strided convolutions that subsample them (as in Whisper, arXiv 2212.04356).

    The statistics stay in float32 where the model is cast to bfloat16."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: SpeechSpec, dim: int) -> None:
        super().__init__()
        self.mel = LogMel(rate=spec.rate, window=spec.window, hop=spec.hop, mels=spec.mels)
        self.register_buffer("mean", torch.full((spec.mels,), -5.0))
        self.register_buffer("deviation", torch.full((spec.mels,), 1.5))
        widths = _widths(spec, dim)
        self.halve = nn.ModuleList(nn.Conv1d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.project = nn.Linear(widths[-1], dim)
        self.norm = nn.LayerNorm(dim)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        statistics = {"mean": self.mean, "deviation": self.deviation}
        super()._apply(fn, recurse)
        for name, value in statistics.items():
            setattr(self, name, never_narrower(fn)(value))
        return self

    @staticmethod
    def parameters_of(spec: SpeechSpec, dim: int) -> int:
        """Number of parameters for a trunk of width `dim`."""
        widths = _widths(spec, dim)
        return sum(3 * a * b + b for a, b in pairwise(widths)) + widths[-1] * dim + dim + 2 * dim

    @torch.no_grad()
    def fit(self, audios: Iterable[Tensor]) -> None:
        """Mean and deviation per mel band over waveforms [n]."""
        frames = torch.cat([self.extract(audio) for audio in audios])
        self.mean.copy_(frames.mean(0))
        self.deviation.copy_(frames.std(0).clamp(min=1e-3))

    @torch.no_grad()
    def extract(self, audio: Tensor) -> Tensor:
        """Waveform [n] to log-mel frames [F, mels] on the module's device, not yet normalised."""
        frames: Tensor = self.mel(audio[None].to(self.mean.device))[0]
        return frames

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, F, mels] with mask [B, F] to tokens [B, S, D] with mask [B, S], S = ceil(F / subsample).

        Padding is zeroed before each convolution, so it is the same silence that lies beyond the end of every row.
        """
        x = (frames - self.mean) / self.deviation * mask[..., None]
        x = x.to(self.project.weight.dtype)
        for conv in self.halve:
            x = F.gelu(conv(x.transpose(1, 2))).transpose(1, 2)
            mask = mask[:, ::2]
            x = x * mask[..., None]
        return self.norm(self.project(x)), mask


def _widths(spec: SpeechSpec, dim: int) -> list[int]:
    """Channels before and after each halving."""
    return [spec.mels] + [dim] * (spec.subsample.bit_length() - 1)
