"""A pre-gate that learned from the gates of a trained model (Read-ME): what that is worth, and what knowing its routes
ahead saves."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from modalities.text.evaluate import windows
from modalities.text.module import Text
from training.claims import lab
from training.claims.base import TrainedClaim
from training.claims.budget import Budget
from training.claims.counting import text_name
from training.claims.lab import Outcome
from training.claims.losses import difference
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.inference.expert_batches import Batch, by_expert, in_order, in_turn, needed
from zoo.inference.expert_cache import hits
from zoo.inference.lookahead import lookahead

ROUTER = r"\.router\."
REST = r"^(?!.*\.router\.)"
_TUNED: dict[str, Outcome] = {}  # the last few: claims of one entry look at the same ones


@dataclass(frozen=True, kw_only=True)
class PreGatedClaim(TrainedClaim):
    """A check on a model that is trained with gates in every layer, whose pre-gate then learns from these while the
    rest is frozen, and whose rest goes on under the pre-gate.

    gates    what is exchanged for the first training, by dotted path
    base     of that training
    distill  of the pre-gate's
    train    of the rest's, and how it is measured
    """

    gates: dict[str, Any]
    base: Budget = field(default_factory=Budget)
    distill: Budget = field(default_factory=lambda: Budget(steps=100))
    train: Budget = field(default_factory=lambda: Budget(steps=100))

    def tuned(self, entry: Entry, taught: bool, seed: int, progress: bool) -> Outcome:
        """The model at the end, its pre-gate taught or as it was drawn."""
        plain, gated = self.described(entry), self.described(entry, self.gates)
        key = json.dumps([plain, gated, *map(asdict, (self.base, self.distill, self.train)), taught, seed])
        if key not in _TUNED:
            while len(_TUNED) >= lab.KEPT:
                _TUNED.pop(next(iter(_TUNED)))
            _TUNED[key] = self._tune(plain, gated, taught, seed, progress)
        return _TUNED[key]

    def _tune(self, plain: Any, gated: Any, taught: bool, seed: int, progress: bool) -> Outcome:
        from zoo.hub.weights import save

        first = lab.kept_run(gated, self.base, seed=seed, progress=progress)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="init_from")  # the gates of one model are not the other's
            start = teacher = save(first.model, Path(folder) / "gates")
            if taught:
                distill = {"spec": str(teacher), "weights": str(teacher)}
                with lab.bar(self.distill.steps, progress, "distilling") as tick:
                    settings = {"trainable": [ROUTER], "distill": distill}
                    student = lab.run(plain, self.distill, seed=seed, tick=tick, start=start, settings=settings)
                start = save(student.model, Path(folder) / "taught")
            with lab.bar(self.train.steps, progress, "tuning") as tick:
                return lab.run(plain, self.train, seed=seed, tick=tick, start=start, settings={"trainable": [REST]})

    def routes(self, outcome: Outcome, count: int) -> list[list[set[int]]]:
        """The experts of every token of so many held-out windows, as the pre-gate knows them ahead."""
        text = outcome.model.modality(text_name(outcome.model.spec))
        assert isinstance(text, Text)
        held = windows(text, self.train.source().raws("text", "test"), count)
        batch = text.batch([torch.tensor(window.ids) for window in held])
        with lab.one_thread():
            return lookahead(outcome.model, batch["ids"], batch["mask"]).needs()


@dataclass(frozen=True, kw_only=True)
class DistilledBetterSpec(PreGatedClaim):
    """Held-out loss under the taught pre-gate, beside that under one as it was drawn, after equal steps of the rest.

    deviations  how many standard errors over held-out windows count as chance
    """

    deviations: float = 2.0

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own, other = (self.tuned(entry, taught, seed, progress) for taught in (True, False))
        found = difference([own.measured.losses], [other.measured.losses], own.measured.counts)
        bound = -self.deviations * found.band
        note = f"{own.measured.loss:.4f} nats per byte, under a drawn one {other.measured.loss:.4f}"
        note += f"; standard error over windows {found.error:.4f}"
        return Finding(found.mean, f"loss minus the other's below {bound:+.4f}", found.mean < bound, note)


@dataclass(frozen=True, kw_only=True)
class FewerExpertsSpec(PreGatedClaim):
    """Batches made by expert need fewer different experts than batches in the order of requests: their mean number over
    the lesser of those of requests one after the other and of requests in turn.

    requests  held-out windows that wait
    size      tokens of a batch
    patience  batches that a request may be left out of in a row
    at_most   greatest ratio
    """

    requests: int = 16
    size: int = 32
    patience: int = 8
    at_most: float = 0.8

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        routes = self.routes(self.tuned(entry, True, seed, progress), self.requests)
        own, order, turn = (
            _mean(batches, routes)
            for batches in (
                by_expert(routes, self.size, self.patience), in_order(routes, self.size), in_turn(routes, self.size)
            )
        )  # fmt: skip
        ratio = own / min(order, turn)
        note = f"{own:.2f} experts a batch, in order {order:.2f}, in turn {turn:.2f}"
        return Finding(ratio, f"at most {self.at_most:g} times as many", ratio <= self.at_most, note)


@dataclass(frozen=True, kw_only=True)
class CacheHitsSpec(PreGatedClaim):
    """A cache that knows the routes ahead finds more of what is used: its share of hits minus the better of recency's
    and chance's, for the experts of small batches of requests in turn.

    requests  held-out windows that wait
    size      tokens of a batch
    capacity  experts that are held
    at_least  least difference
    """

    requests: int = 8
    size: int = 4
    capacity: int = 4
    at_least: float = 0.0

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        routes = self.routes(self.tuned(entry, True, seed, progress), self.requests)
        trace = [expert for batch in in_turn(routes, self.size) for expert in sorted(needed(batch, routes))]
        share = {
            policy: hits(trace, self.capacity, policy, seed) / len(trace) for policy in ("belady", "lru", "random")
        }
        gap = share["belady"] - max(share["lru"], share["random"])
        note = ", ".join(f"{policy} {found:.1%}" for policy, found in share.items()) + f" of {len(trace)} uses"
        return Finding(gap, f"at least {self.at_least:g}", gap >= self.at_least, note)


def _mean(batches: Sequence[Batch], routes: list[list[set[int]]]) -> float:
    return sum(len(needed(batch, routes)) for batch in batches) / len(batches)
