"""Losses of held-out data: sums over batches, then over ranks, divided once."""

from __future__ import annotations

from collections.abc import Callable

from modalities.base import Loss

Pairs = dict[str, tuple[float, float]]


class Sums:
    """`modality/metric` -> (sum, count)."""

    def __init__(self) -> None:
        self.pairs: Pairs = {}

    def add(self, name: str, loss: Loss) -> None:
        """A batch's loss and metrics."""
        for key, (total, count) in {"loss": (loss.total, loss.count), **loss.metrics}.items():
            value, units = self.pairs.get(f"{name}/{key}", (0.0, 0.0))
            self.pairs[f"{name}/{key}"] = (value + float(total), units + float(count))

    def means(self, prefix: str, gather: Callable[[Pairs], list[Pairs]]) -> dict[str, float]:
        """prefix/modality/metric -> mean over all ranks, and prefix/loss, the mean of the modalities' losses; forgets
        everything."""
        total: Pairs = {}
        for part in gather(self.pairs):
            for key, (value, count) in part.items():
                held = total.get(key, (0.0, 0.0))
                total[key] = (held[0] + value, held[1] + count)
        self.pairs = {}
        means = {f"{prefix}/{key}": value / max(count, 1e-9) for key, (value, count) in total.items()}
        losses = [value for key, value in means.items() if key.endswith("/loss")]
        return means | ({f"{prefix}/loss": sum(losses) / len(losses)} if losses else {})
