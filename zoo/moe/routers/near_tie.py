"""Near ties between logits, as SparseMixer calls them (GRIN, arXiv 2409.12136)."""

from __future__ import annotations

import torch
from torch import Tensor


def near_tie(best: Tensor, rivals: Tensor, gap: float) -> Tensor:
    """Whether rivals lie within 2 `gap` of best, relative to the greater size of the two (so not shift-invariant).

    best and rivals broadcast; a rival of -inf is never tied.
    """
    scale = torch.maximum(best.abs(), rivals.abs()).clamp(min=torch.finfo(rivals.dtype).tiny)
    return (best - rivals) / scale <= 2 * gap


def earlier_picks(index: Tensor, full: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """index, full [T, K] -> [T, K, E] bool twice: what each slot picked, and what the slots before it picked."""
    picks = torch.nn.functional.one_hot(index, experts) * full[..., None]
    return picks > 0, picks.cumsum(1) - picks > 0
