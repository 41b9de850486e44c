"""What adapters do to a language model that was trained before them."""

from __future__ import annotations

import itertools
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.claims import lab
from training.claims.base import TrainedClaim
from training.claims.budget import Budget
from training.claims.counting import text_name
from training.claims.lab import Outcome
from training.claims.losses import difference
from training.claims.measuring import Measured, measure
from zoo.backbone.adapters.lora_experts import LoraExpertsOfBlock
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.models.unified import Unified

_TUNED: dict[str, Outcome] = {}  # the last few, since claims of one entry look at the same ones


@dataclass(frozen=True, kw_only=True)
class AdaptedClaim(TrainedClaim):
    """A check on a model that is trained without its adapter first, and then with it, its own weights frozen.

    base   how it is trained without
    train  how it is trained with, and measured
    """

    base: Budget = field(default_factory=Budget)
    train: Budget = field(default_factory=lambda: Budget(lr=1e-3, data=({"type": "docstrings"},)))

    def tuned(self, entry: Entry, more: Mapping[str, Any], seed: int, progress: bool) -> Outcome:
        """The adapted model with these values exchanged."""
        plain = self.described(entry, more)
        key = json.dumps([plain, asdict(self.base), asdict(self.train), seed], sort_keys=True)
        if key not in _TUNED:
            while len(_TUNED) >= lab.KEPT:
                _TUNED.pop(next(iter(_TUNED)))
            _TUNED[key] = self._tune(entry, plain, seed, progress)
        return _TUNED[key]

    def _tune(self, entry: Entry, plain: dict[str, Any], seed: int, progress: bool) -> Outcome:
        from zoo.hub.weights import save

        before = lab.kept_run(
            self.described(entry, {"backbone.adapter": None}), self.base, seed=seed, progress=progress
        )
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="init_from")  # the adapter's own tensors are new
            start = save(before.model, Path(folder) / "base")
            with lab.bar(self.train.steps, progress, "adapting") as tick:
                return lab.run(plain, self.train, seed=seed, tick=tick, start=start)


@dataclass(frozen=True, kw_only=True)
class AdapterRedundancySpec(AdaptedClaim):
    """Experts of higher layers differ more: Spearman's rank correlation between a layer's depth and the mean Frobenius
    distance of the products B A of two experts beside one of its maps.

    at_least  least correlation
    """

    at_least: float = 0.5

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        from scipy.stats import spearmanr

        found = distances(self.tuned(entry, {}, seed, progress).model)
        value = float(spearmanr(range(len(found)), found).statistic)
        said = ", ".join(f"{distance:.4f}" for distance in found)
        expected = f"rank correlation with depth at least {self.at_least:g}"
        return Finding(value, expected, value >= self.at_least, f"mean distance by layer: {said}")


@dataclass(frozen=True, kw_only=True)
class AdapterBetterSpec(AdaptedClaim):
    """Held-out loss lower than that of another adapter on the same trained model, by more than chance.

    overrides   what is exchanged for the comparison, by dotted path
    deviations  how many standard errors over held-out windows count as chance
    """

    overrides: dict[str, Any]
    deviations: float = 2.0

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own, other = (self.tuned(entry, more, seed, progress) for more in ({}, self.overrides))
        found = difference([own.measured.losses], [other.measured.losses], own.measured.counts)
        bound = -self.deviations * found.band
        note = (
            f"{own.measured.loss:.4f} nats per byte with {trained(own.model):,} trained parameters, with the exchange "
            f"{other.measured.loss:.4f} with {trained(other.model):,}; standard error over windows {found.error:.4f}"
        )
        return Finding(found.mean, f"loss minus the other's below {bound:+.4f}", found.mean < bound, note)


@dataclass(frozen=True, kw_only=True)
class AdapterPruningSpec(AdaptedClaim):
    """Experts of lower layers are worth less: held-out loss without those of the upper half of the layers, minus that
    without those of the lower half.

    deviations  how many standard errors over held-out windows count as chance
    """

    deviations: float = 2.0

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        outcome = self.tuned(entry, {}, seed, progress)
        lower, upper = (self._without(outcome, half) for half in (0, 1))
        found = difference([upper.losses], [lower.losses], upper.counts)
        bound = self.deviations * found.band
        note = (
            f"{outcome.measured.loss:.4f} nats per byte, without the lower half {lower.loss:.4f}, without the upper "
            f"half {upper.loss:.4f}; standard error over windows {found.error:.4f}"
        )
        return Finding(found.mean, f"more than {bound:.4f}", found.mean > bound, note)

    @torch.no_grad()
    def _without(self, outcome: Outcome, half: int) -> Measured:
        """The model as it reads held-out text with the experts of one half of its blocks silent."""
        model, blocks = outcome.model, list(outcome.model.backbone.blocks)
        middle, kept = len(blocks) // 2, []
        for adapter in (m for b in (blocks[middle:] if half else blocks[:middle]) for m in b.modules()):
            if isinstance(adapter, LoraExpertsOfBlock):
                kept += [(weight, weight.clone()) for name in adapter.places for weight in [_outer(adapter, name)]]
        for weight, _ in kept:
            weight.zero_()
        name = text_name(model.spec)
        try:
            with lab.one_thread():
                return measure(model, name, self.train.source().raws(name, "test"), self.train.held_out)
        finally:
            for weight, value in kept:
                weight.copy_(value)


def _outer(adapter: LoraExpertsOfBlock, name: str) -> Tensor:
    """B of the experts beside a map: without it they answer 0."""
    found = adapter.layer(name).experts.b
    assert isinstance(found, Tensor)
    return found


def trained(model: Unified) -> int:
    """Parameters that get a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def distances(model: Unified) -> list[float]:
    """For each adapted layer the mean Frobenius distance of two experts beside one map.

    Raises ValueError where no layer has two experts."""
    found = []
    for adapter in (m for m in model.modules() if isinstance(m, LoraExpertsOfBlock)):
        pairs = []
        for name in adapter.places:
            experts = adapter.layer(name).experts
            products = [experts.product(one) for one in torch.eye(experts.count)]  # type: ignore[operator]
            pairs += [float((a - b).norm()) for a, b in itertools.combinations(products, 2)]
        if pairs:
            found.append(sum(pairs) / len(pairs))
    if not found:
        raise ValueError("adapter: no layer has two experts to compare")
    return found
