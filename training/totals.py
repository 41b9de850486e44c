"""What the sums of a whole optimiser step are divided by, over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Divide = Literal["step", "modality"]
Units = tuple[str, Tensor, Tensor]  # modality, target units, tokens


@dataclass(frozen=True)
class Totals:
    """units: modality -> target units of the step; tokens: trunk tokens of the step; both over all ranks."""

    units: Mapping[str, Tensor]
    tokens: Tensor

    @classmethod
    def of(cls, parts: Sequence[Units], names: Sequence[str], reduce: Callable[[Tensor], Tensor]) -> Totals:
        """Sums over micro-batches, then over ranks in one reduction. names: all modalities of the model, in order."""
        device = parts[0][1].device
        flat = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        for name, units, tokens in parts:
            flat[names.index(name)] += units
            flat[-1] += tokens
        flat = reduce(flat)
        return cls(dict(zip(names, flat[:-1].float(), strict=True)), flat[-1].float())

    def divisor(self, name: str, divide: Divide) -> Tensor:
        """What a modality's loss sum is divided by.

        step      all target units of the step: every unit weighs the same, whatever it is a unit of
        modality  the target units of this modality, times the number of modalities in the step: a mean of the
                  modalities' own means, so that an image with one label weighs no less than a page with a thousand
        """
        held = torch.stack(list(self.units.values()))
        if divide == "step":
            return held.sum().clamp(min=1)
        return (self.units[name] * (held > 0).sum()).clamp(min=torch.finfo(torch.float32).tiny)

    def balance_divisor(self) -> Tensor:
        """What sums over trunk tokens are divided by."""
        return self.tokens.clamp(min=1)
