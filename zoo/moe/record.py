"""What one MoE layer leaves behind in a forward pass: for balance, statistics and traces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zoo.moe.routing import Routing
from zoo.moe.stats import Stats


@dataclass(frozen=True)
class LayerRecord:
    """routing and statistics of a [B, S] batch; document [T] where rows are packed; modality [T] where known; weight
    [T] of each token in balance, None for 1; copies how often all tokens stand in it, one batch after the other (of the
    maps of a layer that adapters stand beside)."""

    routing: Routing
    stats: Stats
    shape: tuple[int, int]
    document: Tensor | None = None
    modality: Tensor | None = None
    weight: Tensor | None = None
    copies: int = 1
