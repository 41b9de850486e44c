"""A recurrent gate: one small GRU runs over the MoE layers of each token (RMoE, arXiv 2408.06793)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.moe.gates.base import Gate, GateSpec, Signal, affine
from zoo.moe.gates.drawn import DrawnGate, DrawnGateSpec, undrawn
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import Cost, linear_cost

STATE = "recurrent_gate.state"


@dataclass(frozen=True, kw_only=True)
class RecurrentGateSpec(DrawnGateSpec):
    """logits = G_i h_i with h_i = GRU(P_i x, h_{i-1}), h_0 = 0: P_i and G_i belong to a layer, the GRU to all of them.

    The state runs over depth for every token apart; nothing of it is kept between tokens or decoding steps.

    state     width of the state
    passing   whole (the next layer's state depends on this one, gradient included), detached (without gradient) or
              none (every layer starts from 0, with the same weights): the two others are the paper's comparisons
    init_std  standard deviation of the initial P and G; the GRU starts as torch draws it
    """

    state: int = 128
    passing: Literal["whole", "detached", "none"] = "whole"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state < 1:
            raise ValueError(f"state: got {self.state}, expected 1 or more")

    @property
    def carried(self) -> bool:
        return True

    def follow(self, previous: GateSpec | None, previous_pool: Pool | None, pool: Pool) -> None:
        super().follow(previous, previous_pool, pool)
        before = None if previous is None else previous.core
        if isinstance(before, RecurrentGateSpec) and before.state != self.state:
            raise ValueError(f"state: got {self.state}, but the MoE layer before passes on {before.state}")

    def cost(self, dim: int, pool: Pool) -> Cost:
        maps = linear_cost(dim, self.state) + linear_cost(self.state, pool.columns)
        return maps + linear_cost(self.state, 3 * self.state, bias=True).times(2)

    def follow_cost(self, dim: int, pool: Pool) -> Cost:
        shared = 6 * self.state * (self.state + 1)
        return Cost(-shared, -shared, 0)

    def build(self, dim: int, pool: Pool) -> RecurrentGate:
        return RecurrentGate(self, dim, pool)


class Cell(nn.GRUCell):
    """A GRU in the precision of what it reads."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """u, h [T, p] -> h' [T, p]; h is 0 where there is none."""
        hx = torch.zeros_like(input) if hx is None else hx.to(input.dtype)
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return torch.gru_cell(input, hx, *(weight.to(input.dtype) for weight in weights))


class RecurrentGate(DrawnGate):
    """into [p, D], out [E + Ns, p]; the first MoE layer's owns `cell`, the later ones use that one."""

    spec: RecurrentGateSpec
    cell: Cell | None

    def __init__(self, spec: RecurrentGateSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, pool)
        self.into = undrawn(spec.state, dim)
        self.out = undrawn(pool.columns, spec.state)
        self.cell = Cell(spec.state, spec.state, dtype=torch.float32)
        self._first: tuple[RecurrentGate, ...] = ()  # in a tuple, so that its cell is registered once
        self.reset_parameters()

    @property
    def common(self) -> nn.Module | None:
        return self.cell

    def link(self, earlier: Sequence[Gate]) -> None:
        for gate in earlier:
            if isinstance(gate.core, RecurrentGate):
                self.cell, self._first = None, (gate.core,)
                return

    def signal(self, x: Tensor, ctx: RoutingContext) -> Signal:
        u = affine(x, self.into)
        state = None if self.spec.passing == "none" else ctx.carry.get(STATE)
        cell = self._first[0].cell if self._first else self.cell
        assert cell is not None
        state = cell(u, state.detach() if state is not None and self.spec.passing == "detached" else state)
        raw = affine(state, self.out)
        return Signal(raw, raw[:, : self.pool.experts], raw, carry={STATE: state})
