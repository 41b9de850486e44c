"""Figures of the steps since the last report; read (and the device waited for) only when something is logged."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from zoo.models.unified import ForwardOutput
from zoo.moe.layer import MoE

Gather = Callable[[dict[str, list[float]]], list[dict[str, list[float]]]]


@dataclass(frozen=True)
class Report:
    """What happened since the report before.

    step     number of steps done
    steps    number of steps it covers
    scalars  name -> figure, as they are logged
    load     modality -> per MoE layer the slots [E] of each expert
    """

    step: int
    steps: int
    scalars: dict[str, float]
    load: dict[str, list[np.ndarray]] = field(default_factory=dict)


class Meter:
    """Adds up micro-batches as tensors where they are; `report` divides."""

    def __init__(self, layers: Sequence[MoE]) -> None:
        self.sizes = [layer.pool.experts for layer in layers]
        self.reset(0)

    def reset(self, step: int) -> None:
        """Forgets everything; the next report covers steps from `step` on."""
        self.sums: dict[str, Tensor] = {}
        self.since, self.clock = step, time.perf_counter()

    def add(self, name: str, out: ForwardOutput, balance: dict[str, Tensor]) -> None:
        """A micro-batch of a modality and its balance losses (sums over its tokens)."""
        with torch.no_grad():
            loss = out.loss
            tokens = out.tokens.real
            pairs = {"loss": (loss.total, loss.count), **loss.metrics}
            for key, (total, count) in pairs.items():
                self._add(f"pair/{name}/{key}", torch.stack([total.double(), count.double()]))
            for key, value in balance.items():
                self._add(f"balance/{key}", torch.stack([value.double(), tokens.double()]))
            self._add("tokens", tokens.double()[None])
            if out.records:
                stats = [r.stats for r in out.records]
                self._add(f"load/{name}", torch.cat([s.load for s in stats]))
                self._add("kept", torch.stack([s.kept for s in stats]))
                self._add("null", torch.stack([s.null for s in stats]))
                self._add("routed", torch.stack([s.tokens for s in stats]))
                self._add("entropy", torch.stack([s.entropy * s.tokens for s in stats]).double())

    def _add(self, key: str, value: Tensor) -> None:
        value = value.detach()
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def report(self, step: int, gather: Gather, extra: dict[str, float]) -> Report:
        """Everything since the last report, over all ranks; starts anew. `step` is the number of steps done."""
        own = {key: value.tolist() for key, value in self.sums.items()}
        total: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(1))
        for part in gather(own):
            for key, values in part.items():
                total[key] = total[key] + np.asarray(values)
        seconds = max(time.perf_counter() - self.clock, 1e-9)
        scalars = {**_losses(total), **extra, "tokens_per_second": float(total["tokens"][0]) / seconds}
        loads = {k.partition("/")[2]: self._split(v) for k, v in total.items() if k.startswith("load/")}
        if loads:
            scalars |= self._routing(total, loads)
        covered = Report(step, step - self.since, scalars, loads)
        self.reset(step)
        return covered

    def _split(self, flat: np.ndarray) -> list[np.ndarray]:
        return np.split(flat, np.cumsum(self.sizes)[:-1])

    def _routing(self, total: dict[str, np.ndarray], loads: dict[str, list[np.ndarray]]) -> dict[str, float]:
        """Shares of the slots, over all layers; the load of each expert and the slots per token by layer; the worst
        imbalance."""
        layers = [np.sum(parts, axis=0) for parts in zip(*loads.values(), strict=True)]
        slots = max(sum(float(layer.sum()) for layer in layers), 1.0)
        tokens = max(float(total["routed"].sum()), 1.0)
        scalars = {
            "routing/null_share": float(total["null"].sum()) / slots,
            "routing/dropped_share": 1 - float(total["kept"].sum()) / slots,
            "routing/mean_k": slots / tokens,
            "routing/entropy": float(total["entropy"].sum()) / tokens,
            "routing/imbalance": max(float(layer.max() / max(layer.mean(), 1e-9)) for layer in layers),
        }
        for i, layer in enumerate(layers):
            scalars[f"routing/layer{i}/mean_k"] = float(layer.sum()) / max(float(total["routed"][i]), 1.0)
            share = layer / max(float(layer.sum()), 1.0)
            scalars |= {f"load/layer{i}/expert{e}": float(s) for e, s in enumerate(share)}
        return scalars


def _losses(total: dict[str, np.ndarray]) -> dict[str, float]:
    """Means of the modalities' losses and metrics, and of the balance losses."""
    scalars = {}
    for key, (value, count) in ((k, v) for k, v in total.items() if k.startswith(("pair/", "balance/"))):
        name = key.removeprefix("pair/")
        scalars[name if key.startswith("balance/") else f"train/{name}"] = float(value) / max(float(count), 1e-9)
    return scalars
