"""What holds a gate, be it a router or a gate around another one: costs, carries and learns what the gate does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from zoo.moe.gates.base import Gate, GateSpec
from zoo.moe.gates.linear import LinearGateSpec
from zoo.moe.pool import Pool
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class HoldsGateSpec:
    """A mix-in for descriptions, named before the base of the socket, whose answers it takes from the gate's.

    gate  what gives the logits
    """

    gate: GateSpec = field(default_factory=LinearGateSpec)

    @property
    def carried(self) -> bool:
        return self.gate.carried

    def cost(self, dim: int, pool: Pool) -> Cost:
        return self.gate.cost(dim, pool)

    def follow_cost(self, dim: int, pool: Pool) -> Cost:
        return self.gate.follow_cost(dim, pool)


class HoldsGate(nn.Module):
    """A mix-in for modules, named before the base, whose part it takes; the class it is mixed into builds `gate`."""

    gate: Gate

    def reset_parameters(self) -> None:
        """Draws the gate anew."""
        self.gate.reset_parameters()

    def update(self, totals: Mapping[str, Tensor]) -> None:
        """Once per optimiser step; see Router.update."""
        self.gate.update(totals)
