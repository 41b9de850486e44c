"""What gates with weights of their own have in common: the spread of the initial weights, and drawing them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from zoo.moe.gates.base import Gate, GateSpec
from zoo.moe.pool import Pool


@dataclass(frozen=True, kw_only=True)
class DrawnGateSpec(GateSpec):
    """A gate with weights of its own.

    init_std  standard deviation of the initial weights
    """

    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.init_std < 0:
            raise ValueError(f"init_std: got {self.init_std}, expected 0 or more")


class DrawnGate(Gate):
    """Holds maps, which are drawn, and biases, which start at zero; subclasses make them and then draw."""

    def __init__(self, spec: DrawnGateSpec, pool: Pool) -> None:
        super().__init__(pool)
        self.spec = spec

    def reset_parameters(self) -> None:
        """Draws the maps anew; biases start at zero again, and parts of the gate as they start themselves."""
        for parameter in self.parameters(recurse=False):
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=self.spec.init_std)
            else:
                nn.init.zeros_(parameter)
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]


def undrawn(*shape: int) -> nn.Parameter:
    """A parameter of this shape in float32, its values not yet set."""
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))
