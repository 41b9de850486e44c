"""Log-mel analysis and the way back to sound: shared by the built-in codec and by the speech features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modalities.precise import Precise

MOMENTUM = 0.99
FLOOR = 1e-3  # magnitude of the quietest band kept: 60 dB below a full-scale sine


class LogMel(Precise):
    """Waveform [B, n] to log-mel frames [B, ceil(n / hop), mels]: log of mel magnitudes, at least -60 dB.

    Frame i is centred on sample (i + 0.5) * hop and sees zeros outside the recording, so frames of a padded batch equal
    those of its rows. A full-scale sine has magnitude 1. Filters are torchaudio's HTK triangles over 20 Hz .. rate / 2.
    """

    filters: Tensor
    inverse: Tensor
    hann: Tensor

    def __init__(self, *, rate: int, window: int, hop: int, mels: int) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.window, self.hop = window, hop
        filters = melscale_fbanks(window // 2 + 1, 20.0, rate / 2, mels, rate)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(filters), persistent=False)
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, n] -> [B, ceil(n / hop), mels] float32."""
        short = -audio.shape[1] % self.hop
        left = (self.window - self.hop) // 2
        padded = F.pad(audio.float(), (left, self.window - self.hop - left + short))
        spectrum = torch.stft(padded, self.window, self.hop, window=self.hann, center=False, return_complex=True)
        magnitude = spectrum.abs().transpose(1, 2) * (2 / self.hann.sum())
        return (magnitude @ self.filters).clamp(min=FLOOR).log()

    def invert(self, frames: Tensor, rounds: int, seed: int) -> Tensor:
        """Log-mel frames [B, T, mels] to a waveform [B, T * hop]: pseudo-inverse of the filters, then `rounds` of fast
        Griffin-Lim from random phases drawn with `seed` (the same for every row)."""
        magnitude = (frames.exp() - FLOOR).clamp(min=0) @ self.inverse
        magnitude = magnitude.clamp(min=0).transpose(1, 2) * (self.hann.sum() / 2)
        audio = self._griffin_lim(magnitude, rounds, seed)
        # istft starts at the centre of frame 0, which lies half a hop into the recording.
        left = self.hop // 2
        return F.pad(audio, (left, self.hop - left))

    def _griffin_lim(self, magnitude: Tensor, rounds: int, seed: int) -> Tensor:
        """Perraudin, Balazs and Sondergaard 2013 (momentum 0.99). torchaudio's version draws from the global generator
        and starts every row elsewhere, so that a row would depend on its batch."""
        _, bins, frames = magnitude.shape
        # Frame by frame, so that the phases of a recording do not depend on the length of the batch.
        draw = torch.rand(frames, bins, generator=torch.Generator().manual_seed(seed)).T.to(magnitude.device)
        phase = torch.polar(torch.ones_like(draw), 2 * torch.pi * draw).expand_as(magnitude)
        previous = torch.zeros_like(phase)
        length = (frames - 1) * self.hop
        if length == 0:
            return magnitude.new_zeros(magnitude.shape[0], 0)
        for _ in range(rounds):
            audio = torch.istft(magnitude * phase, self.window, self.hop, window=self.hann, length=length)
            rebuilt = torch.stft(
                audio, self.window, self.hop, window=self.hann, pad_mode="constant", return_complex=True
            )
            moved = rebuilt - previous * (MOMENTUM / (1 + MOMENTUM))
            phase, previous = moved / moved.abs().clamp(min=1e-12), rebuilt
        return torch.istft(magnitude * phase, self.window, self.hop, window=self.hann, length=length)
