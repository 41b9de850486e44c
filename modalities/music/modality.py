"""What both representations of music share: they compose a piece and turn it into sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modalities.base import Batch, Modality, Step


class Music(Modality):
    """A music modality. Its pieces are tensors of its own representation: notes [T, 4] or codes [codebooks, frames].

    unit     what its loss counts and its bits are per: "note" or "code"
    symbols  how many different symbols a voice (or codebook) has
    seconds  how long a step (a sixteenth note, a codec frame) lasts in `sound`
    """

    unit: str
    symbols: int
    seconds: float

    def pieces(self, example: Mapping[str, Tensor]) -> np.ndarray:
        """An example as symbols [steps, voices], for statistics and the bigram."""
        raise NotImplementedError

    def windows(self, example: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """An example cut into rows as `stack` takes them, so that every symbol is a target once."""
        raise NotImplementedError

    def stack(self, rows: Sequence[Mapping[str, Tensor]]) -> Batch:
        """Rows of any lengths as one batch, padded at the end; nothing is drawn."""
        raise NotImplementedError

    def compose(
        self, step: Step, steps: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """A piece of at most `steps` new steps (sixteenth notes, or codec frames), drawn with `generator`.

        `step` is incremental: it is given the opening once and then each new token; it must be a fresh one.
        """
        raise NotImplementedError

    def sound(self, piece: Tensor) -> tuple[np.ndarray, int]:
        """A piece as float32 samples [n] in -1..1 and their rate."""
        raise NotImplementedError
