"""Several horizon heads, and how they make up a forecast of any length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DELTA = 2.0


def schedule(heads: Sequence[int], horizon: int) -> list[tuple[int, int]]:
    """(head index, values taken) of each pass: the largest head that fits the rest; the smallest, cut, where none does.

    96 with heads 1, 8, 32, 64 is 64 + 32 (Time-MoE, section 3.2). Raises ValueError on a horizon below 1.
    """
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"horizon: got {horizon!r}, expected a whole number of at least 1")
    passes = []
    while horizon > 0:
        head = max((i for i, p in enumerate(heads) if p <= horizon), default=0)
        passes.append((head, min(heads[head], horizon)))
        horizon -= passes[-1][1]
    return passes


class HorizonHeads(nn.Module):
    """One linear map without bias per horizon: hidden [..., D] to the next p values [..., p]."""

    def __init__(self, dim: int, horizons: Sequence[int]) -> None:
        super().__init__()
        self.horizons = tuple(horizons)
        self.maps = nn.ModuleList(nn.Linear(dim, p, bias=False) for p in horizons)
        for linear in self.maps:
            nn.init.normal_(linear.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor, head: int) -> Tensor:
        """The forecast of the head with this index."""
        return self.maps[head](hidden)

    def errors(self, hidden: Tensor, target: Tensor, real: Tensor, kind: str) -> tuple[Tensor, list[Tensor]]:
        """Losses per position: [N] averaged over heads, and the squared error of each head [N].

        hidden [N, D], target [N, H] and real [N, H] (False where there is no value), H the longest horizon. A
        head's loss is the mean over its real targets, 0 where there is none.
        """
        losses, squares = [], []
        for i, p in enumerate(self.horizons):
            forecast, wanted, mask = self(hidden, i).float(), target[:, :p], real[:, :p]
            square = (forecast - wanted).square()
            loss = F.huber_loss(forecast, wanted, reduction="none", delta=DELTA) if kind == "huber" else square
            number = mask.sum(1).clamp(min=1)
            losses.append((loss * mask).sum(1) / number)
            squares.append((square.detach() * mask).sum(1) / number)
        return torch.stack(losses).mean(0), squares
