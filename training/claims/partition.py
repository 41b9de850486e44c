"""A known partition found again by a gate: regression of mixed linear maps (the router-level check beside the theory of
temperatures, arXiv 2401.13875)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.claims.lab import one_thread
from training.seeds import derive
from zoo.claims import ClaimSpec, Finding
from zoo.hub.entries import Entry
from zoo.moe.gates.base import GateSpec
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import override, parse

NOISE = 0.2  # deviation of y around its expert's map
FRESH = 2000  # points on which parts are compared


@dataclass(frozen=True, kw_only=True)
class PartitionSpec(ClaimSpec):
    """From few samples a gate finds the parts of a partitioned regression no worse than under an exchange: the adjusted
    Rand index of the gate's best expert and the true part, on fresh points.

    y is W_j x + noise, j the greatest of `parts` random linear scores of x ~ N(0, 1); the gate's softmax mixes as many
    linear experts with normal noise, all fitted together by Adam on the likelihood.

    gate        path of the entry's gate
    overrides   keys of the gate to exchange for the comparison
    sizes       numbers of samples; the first decides
    parts       parts of the partition
    dim         width of x
    steps       optimiser steps of a fit
    lr          learning rate
    replicates  fits for each size and gate, on the same samples
    """

    gate: str
    overrides: dict[str, Any]
    sizes: tuple[int, ...] = (100, 400, 1600)
    parts: int = 4
    dim: int = 4
    steps: int = 400
    lr: float = 0.03
    replicates: int = 10

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes: got {self.sizes}, expected at least one, each 1 or more")
        if self.parts < 2:
            raise ValueError(f"parts: got {self.parts}, expected 2 or more")

    def check(self, entry: Entry, *, seed: int = 0, progress: bool = True) -> Finding:
        """The mean index at the least number of samples, minus the other gate's."""
        plain: Any = entry.spec
        for key in self.gate.split("."):
            plain = plain[int(key)] if isinstance(plain, list) else plain[key]
        gates = [parse(GateSpec, override(plain, more), "gate") for more in ({}, self.overrides)]
        with one_thread(), torch.random.fork_rng(devices=[]):
            table = [[self._index(gate, size, seed) for size in self.sizes] for gate in gates]
        gap = table[0][0] - table[1][0]
        said = [", ".join(f"{n}: {v:.3f}" for n, v in zip(self.sizes, row, strict=True)) for row in table]
        note = f"mean index of {self.replicates} fits by samples {said[0]}; with {self.overrides} {said[1]}"
        return Finding(gap, f"index minus the other's at {self.sizes[0]} samples at least 0", gap >= 0, note)

    def _index(self, gate: GateSpec, size: int, seed: int) -> float:
        from sklearn.metrics import adjusted_rand_score

        found = []
        for replicate in range(self.replicates):
            torch.manual_seed(derive(seed, "partition", size, replicate))
            score, maps = torch.randn(self.parts, self.dim), torch.randn(self.parts, self.dim)
            x, fresh = torch.randn(size, self.dim), torch.randn(FRESH, self.dim)
            part = (x @ score.T).argmax(-1)
            y = (maps[part] * x).sum(-1) + NOISE * torch.randn(size)
            best = self._fit(gate, x, y, fresh)
            found.append(float(adjusted_rand_score((fresh @ score.T).argmax(-1).numpy(), best.numpy())))
        return sum(found) / len(found)

    def _fit(self, spec: GateSpec, x: Tensor, y: Tensor, fresh: Tensor) -> Tensor:
        """[F] the best expert of fresh points, after fitting a gate and linear experts."""
        gate = spec.build(self.dim, Pool(routed=self.parts))
        experts, variance = torch.nn.Linear(self.dim, self.parts), torch.zeros(self.parts, requires_grad=True)  # log
        adam = torch.optim.Adam([*gate.parameters(), *experts.parameters(), variance], lr=self.lr)
        for _ in range(self.steps):
            adam.zero_grad()
            normal = -0.5 * ((y[:, None] - experts(x)).square() / variance.exp() + variance)
            weight = gate(x, _context(x)).raw.log_softmax(-1)
            (-torch.logsumexp(weight + normal, dim=-1).mean()).backward()
            adam.step()
        with torch.no_grad():
            best: Tensor = gate(fresh, _context(fresh)).raw.argmax(-1)
        return best


def _context(x: Tensor) -> RoutingContext:
    return RoutingContext(shape=(1, len(x)), mask=torch.ones(len(x), dtype=torch.bool))
