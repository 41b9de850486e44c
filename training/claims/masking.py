"""Experts that cannot be spared: what held-out text costs without those a token likes best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.claims.base import TrainedClaim
from training.claims.counting import text_name
from training.claims.lab import Outcome, one_thread
from training.claims.measuring import measure
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.moe.layer import MoE
from zoo.moe.routing import Routing, RoutingContext


@dataclass(frozen=True, kw_only=True)
class LessRedundantSpec(TrainedClaim):
    """Barring every token from its best routed experts, the others then taking their place, costs more held-out loss
    than under an exchange.

    bar        routed experts that a token may not choose, its best by logit, in every layer
    overrides  what is exchanged for the comparison, by dotted path
    bar_other  the same number there, where the same share of the experts is another number
    """

    bar: int
    overrides: dict[str, Any]
    bar_other: int

    def __post_init__(self) -> None:
        for key in ("bar", "bar_other"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: got {getattr(self, key)}, expected 1 or more")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own = self._rise(self.outcome(self.described(entry), seed, progress), self.bar)
        other = self._rise(self.outcome(self.described(entry, self.overrides), seed, progress), self.bar_other)
        note = f"without the {self.bar} best {own:+.4f} nats per byte, {self.bar_other} of the other's {other:+.4f}"
        return Finding(own - other, "a greater rise of the loss than the other's", own > other, note)

    def _rise(self, outcome: Outcome, count: int) -> float:
        """What held-out text costs more in nats per byte."""
        model = outcome.model
        name = text_name(model.spec)
        with one_thread(), without_best(model.moe_layers(), count):
            barred = measure(model, name, self.train.source().raws(name, "test"), self.train.held_out)
        return barred.loss - outcome.measured.loss


@contextmanager
def without_best(layers: Sequence[MoE], count: int) -> Iterator[None]:
    """Inside, no token chooses one of its `count` best routed experts by logit."""
    for layer in layers:
        vars(layer)["route"] = _barring(layer, count)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["route"]


def _barring(layer: MoE, count: int) -> Any:
    routed, experts = layer.pool.routed, layer.pool.experts

    def route(x: Tensor, ctx: RoutingContext, exclude: Tensor | None = None) -> Routing:
        best = MoE.route(layer, x, ctx, exclude).logits[:, :routed].topk(min(count, routed), dim=-1).indices
        barred = torch.zeros(len(x), experts, dtype=torch.bool, device=x.device).scatter(1, best, True)
        return MoE.route(layer, x, ctx, barred if exclude is None else barred | exclude)

    return route
