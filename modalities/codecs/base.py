"""What every codec speaks: waveform [n] at one rate <-> codes [codebooks, frames]."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from modalities.precise import Precise


class NotFittedError(ValueError, RuntimeError):
    """A codec was used before its codebooks were fitted or loaded."""


class Codec(Precise):
    """Sound to discrete frames and back. Never trained with the model: its weights are fitted or loaded, then frozen.

    rate        samples per second of the waveforms it takes and gives
    frame_rate  frames per second
    codebooks   C, codes per frame
    size        entries per codebook; codes lie in 0 .. size - 1
    fitted      buffer, bool: whether `encode` and `decode` can be used (saved with the weights)

    Subclasses write `_encode`, `_decode` and, where there is something to fit, `fit`.
    """

    fitted: Tensor

    def __init__(self, *, rate: int, frame_rate: float, codebooks: int, size: int, fitted: bool) -> None:
        super().__init__()
        self.rate, self.frame_rate, self.codebooks, self.size = rate, frame_rate, codebooks, size
        self.register_buffer("fitted", torch.tensor(fitted))

    @property
    def hop(self) -> float:
        """Samples per frame."""
        return self.rate / self.frame_rate

    def fit(self, audios: Iterable[Tensor]) -> None:
        """Fits the codebooks to waveforms [n] at `rate`. A codec that comes with its weights has nothing to fit."""

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Waveform [n] or [B, n], float in -1..1 at `rate`, to codes [C, F] or [B, C, F] int64.

        Raises ValueError on empty or non-finite audio, NotFittedError before `fit`.
        """
        self._require_fitted()
        if audio.ndim not in (1, 2) or audio.shape[-1] == 0:
            raise ValueError(f"audio: got shape {list(audio.shape)}, expected [samples] or [batch, samples], not empty")
        if not bool(torch.isfinite(audio).all()):
            raise ValueError("audio: holds NaN or infinite samples; clean the recording first")
        rows = audio.to(self.fitted.device, torch.float32).reshape(-1, audio.shape[-1])
        codes = self._encode(rows)
        return codes[0] if audio.ndim == 1 else codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [C, F] or [B, C, F] to a waveform [n] or [B, n] float32 at `rate`, n about F * hop.

        Raises ValueError on a wrong number of codebooks or a code outside 0 .. size - 1, NotFittedError before `fit`.
        """
        self._require_fitted()
        if codes.ndim not in (2, 3) or codes.shape[-2] != self.codebooks or codes.shape[-1] == 0:
            raise ValueError(
                f"codes: got shape {list(codes.shape)}, expected [{self.codebooks}, frames] "
                f"or [batch, {self.codebooks}, frames] with at least one frame"
            )
        if int(codes.min()) < 0 or int(codes.max()) >= self.size:
            raise ValueError(f"codes: got {int(codes.min())}..{int(codes.max())}, expected 0..{self.size - 1}")
        audio = self._decode((codes if codes.ndim == 3 else codes[None]).to(self.fitted.device))
        return audio[0] if codes.ndim == 2 else audio

    def _require_fitted(self) -> None:
        if not bool(self.fitted):
            raise NotFittedError(
                "this codec has no codebooks yet: call fit(audios) on training recordings, or load weights"
            )

    def _encode(self, audio: Tensor) -> Tensor:
        """[B, n] float32 -> [B, C, F] int64."""
        raise NotImplementedError

    def _decode(self, codes: Tensor) -> Tensor:
        """[B, C, F] int64 -> [B, n] float32."""
        raise NotImplementedError
