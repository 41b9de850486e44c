"""Balance over one optimiser step: counts accumulated over micro-batches and ranks, losses as sums, bias updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo.moe.balance.base import BalanceContext, Counts
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord

Reduce = Callable[[Tensor], Tensor]


def _same(counts: Tensor) -> Tensor:
    return counts


class BalanceStep:
    """One optimiser step of all MoE layers: `add` each micro-batch, ask for its `losses`, then `finish`.

    reduce sums a flat count vector over data-parallel ranks; it is called once per `add`, on every rank, in the same
    order. With `global_exact` rules all micro-batches are added first (`exact` then holds for all losses).
    """

    def __init__(self, layers: Sequence[MoE], reduce: Reduce = _same, *, exact: bool = False) -> None:
        self.layers, self.reduce, self.exact = list(layers), reduce, exact
        self.sizes = [2 * layer.pool.experts + 1 for layer in layers]
        self.packed = [torch.zeros(size, dtype=torch.int64) for size in self.sizes]

    def add(self, records: Sequence[LayerRecord]) -> None:
        """Adds the counts of a micro-batch, over all ranks."""
        if not self.layers:  # a dense model
            return
        with torch.no_grad():
            flat = torch.cat([Counts.of(record.routing).pack() for record in records])
            pieces = self.reduce(flat).split(self.sizes)
            self.packed = [c.to(p.device) + p for c, p in zip(self.packed, pieces, strict=True)]

    @property
    def counts(self) -> list[Counts]:
        """What was counted so far, by layer."""
        return [Counts.unpack(flat) for flat in self.packed]

    def losses(self, records: Sequence[LayerRecord], step: int) -> dict[str, Tensor]:
        """Weighted losses of a micro-batch, "type" -> scalar: sums over its tokens, mean over layers."""
        total: dict[str, Tensor] = {}
        for layer, record, counts in zip(self.layers, records, self.counts, strict=True):
            ctx = BalanceContext.of(record.routing, record.shape, record.document, counts, layer.pool)
            for rule in layer.spec.balance:
                value = rule.loss(record.routing, ctx)
                if value is not None:
                    name = type(rule).__name__.removesuffix("Spec").lower()
                    term = rule.weight_at(step) * value / len(self.layers)
                    total[name] = total[name] + term if name in total else term
        return total

    @torch.no_grad()
    def finish(self, step: int) -> None:
        """Once per optimiser step: selection biases follow the counts; counting starts anew."""
        for layer, counts in zip(self.layers, self.counts, strict=True):
            for rule in layer.spec.balance:
                delta = rule.delta(counts.slots, layer.pool, step)
                bias = layer.router.bias
                if delta is not None and bias is not None:
                    bias += delta.to(bias.device)
        self.packed = [torch.zeros_like(flat) for flat in self.packed]


def needs_exact_counts(layers: Sequence[MoE]) -> bool:
    """Whether any rule wants the counts of the whole optimiser step before the first loss."""
    return any(rule.wider_scope() == "global_exact" for layer in layers for rule in layer.spec.balance)
