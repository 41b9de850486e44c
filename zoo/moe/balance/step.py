"""Balance over one optimiser step: counts accumulated over micro-batches and ranks, losses as sums, and what changes
once per step (selection biases, running statistics of routers)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

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

    reduce sums a flat vector (counts and the routers' sums) over data-parallel ranks; it is called once per `add`, on
    every rank, in the same order. With `global_exact` rules all micro-batches are added first (`exact` then holds for
    all losses).
    """

    def __init__(self, layers: Sequence[MoE], reduce: Reduce = _same, *, exact: bool = False) -> None:
        self.layers, self.reduce, self.exact = list(layers), reduce, exact
        self.sizes = [2 * layer.pool.experts + 1 for layer in layers]
        self._clear()

    def _clear(self) -> None:
        self.packed = [torch.zeros(size, dtype=torch.float64) for size in self.sizes]
        self.updates: list[dict[str, Tensor]] = [{} for _ in self.layers]
        self.added = 0

    @torch.no_grad()
    def add(self, records: Sequence[LayerRecord]) -> None:
        """Adds the counts and the routers' sums of a micro-batch, over all ranks.

        Raises ValueError where a router gives other sums than in the micro-batch before."""
        if not self.layers:  # a dense model
            return
        updates = [dict(sorted(record.routing.update.items())) for record in records]
        for layer, (old, new) in enumerate(zip(self.updates, updates, strict=True)):
            if self.added and _shapes(old) != _shapes(new):
                raise ValueError(f"update: layer {layer} gave {_shapes(new)}, before it gave {_shapes(old)}")
        counts = [Counts.of(record.routing, record.weight).pack() for record in records]
        vectors = [v for c, u in zip(counts, updates, strict=True) for v in (c, *u.values())]
        flat = self.reduce(torch.cat([v.detach().double().flatten() for v in vectors]))
        pieces = iter(flat.split([v.numel() for v in vectors]))
        for layer, update in enumerate(updates):
            counted = next(pieces)
            self.packed[layer] = self.packed[layer].to(counted.device) + counted
            for name, value in update.items():
                total = next(pieces).view(value.shape)
                self.updates[layer][name] = total + self.updates[layer][name] if self.added else total
        self.added += 1

    @property
    def counts(self) -> list[Counts]:
        """What was counted so far, by layer."""
        return [Counts.unpack(flat) for flat in self.packed]

    def losses(self, records: Sequence[LayerRecord], step: int) -> dict[str, Tensor]:
        """Weighted losses of a micro-batch, "type" -> scalar: sums over its tokens, mean over layers."""
        total: dict[str, Tensor] = {}
        for layer, record, ctx in self._contexts(records):
            for rule in layer.spec.balance:
                value = rule.loss(record.routing, ctx)
                if value is not None:
                    name = type(rule).__name__.removesuffix("Spec").lower()
                    term = rule.weight_at(step) * value / len(self.layers)
                    total[name] = total[name] + term if name in total else term
        return total

    @torch.no_grad()
    def slopes(self, records: Sequence[LayerRecord], step: int) -> list[Tensor]:
        """[E] for each layer: how the weighted losses of a micro-batch change with the experts' mean probabilities."""
        found = []
        for layer, record, ctx in self._contexts(records):
            total = record.routing.raw.new_zeros(layer.pool.experts)
            for rule in layer.spec.balance:
                slope = rule.slope(record.routing, ctx)
                total = total if slope is None else total + rule.weight_at(step) * slope / len(self.layers)
            found.append(total)
        return found

    def _contexts(self, records: Sequence[LayerRecord]) -> Iterator[tuple[MoE, LayerRecord, BalanceContext]]:
        for layer, record, counts in zip(self.layers, records, self.counts, strict=True):
            yield (
                layer,
                record,
                BalanceContext.of(record.routing, record.shape, record.document, counts, layer.pool, record.weight),
            )

    @torch.no_grad()
    def finish(self, step: int) -> None:
        """Once per optimiser step: selection biases follow the counts, routers take up their sums; counting starts
        anew."""
        for layer, counts, totals in zip(self.layers, self.counts, self.updates, strict=True):
            if totals:
                layer.router.update(totals)
            for rule in layer.spec.balance:
                delta = rule.delta(counts.slots, layer.pool, step)
                bias = layer.router.bias
                if delta is not None and bias is not None:
                    bias += delta.to(bias.device)
        self._clear()


def _shapes(values: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in values.items()}


def needs_exact_counts(layers: Sequence[MoE]) -> bool:
    """Whether any rule wants the counts of the whole optimiser step before the first loss."""
    return any(rule.wider_scope() == "global_exact" for layer in layers for rule in layer.spec.balance)
