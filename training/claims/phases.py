"""Experts that begin as one dense network, beside experts trained from the start (EvoMoE, arXiv 2112.14397)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import zoo
from training.claims import lab
from training.claims.base import TrainedClaim
from training.claims.experts import cosine
from training.claims.lab import Outcome, unified
from training.claims.losses import difference
from training.seeds import derive
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.models.unified import Unified
from zoo.spec import Plain
from zoo.surgery.base import SurgerySpec

SOURCE = "dense"


@dataclass(frozen=True, kw_only=True)
class PhasesSpec(TrainedClaim):
    """A dense phase, a surgery that makes experts of it, and the rest of the steps; optimiser and schedule of the
    learning rate begin anew with the experts.

    figure  loss (held-out, no worse than that of the system trained alone for all steps, by more than two standard
            errors over windows) or expert_cosine (the experts are less alike in the end than at the surgery)
    first   steps of the dense phase
    dense   what makes the system dense, by dotted path
    later   what is exchanged for the rest of the steps, such as shorter schedules, by dotted path
    enter   the surgery; its source is called dense
    """

    figure: Literal["loss", "expert_cosine"]
    first: int
    dense: dict[str, Any]
    enter: SurgerySpec
    later: dict[str, Any]

    def __post_init__(self) -> None:
        if not 0 < self.first < self.train.steps:
            raise ValueError(f"first: got {self.first}, expected 1..{self.train.steps - 1} of {self.train.steps} steps")
        if self.enter.sources() != (SOURCE,):
            raise ValueError(f"enter: takes from {self.enter.sources()}, expected a stage called {SOURCE!r}")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        plain = self.described(entry, self.later)
        budget = replace(self.train, steps=self.first)
        dense = lab.kept_run(self.described(entry, self.dense), budget, seed=seed, progress=progress)
        model = self._spawned(plain, dense, seed)
        before = cosine(model.moe_layers())
        with tempfile.TemporaryDirectory() as folder, lab.bar(self.train.steps - self.first, progress) as tick:
            start = zoo.save(model, Path(folder) / "spawned")
            rest = replace(self.train, steps=self.train.steps - self.first)
            found = lab.run(plain, rest, seed=seed, tick=tick, start=start)
        after = cosine(found.model.moe_layers())
        note = f"cosine of two experts {before:.4f} at the surgery, {after:.4f} in the end"
        if self.figure == "expert_cosine":
            return Finding(after - before, "less than at the surgery", after < before, note)
        alone = self.outcome(self.described(entry), seed, progress)
        gap = difference([found.measured.losses], [alone.measured.losses], found.measured.counts)
        bound, losses = 2 * gap.band, f"{found.measured.loss:.4f} nats per byte, alone {alone.measured.loss:.4f}"
        return Finding(gap.mean, f"loss minus the other's at most {bound:+.4f}", gap.mean <= bound, f"{losses}; {note}")

    def _spawned(self, plain: Plain, dense: Outcome, seed: int) -> Unified:
        """The model that the rest begins with."""
        spec = unified(plain)
        self.enter.check(spec, {SOURCE: dense.model.spec})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "weights"))
            model = spec.build()
        source = (dense.model.spec, dense.model.state_dict())
        model.load_state_dict(self.enter.apply(spec, model.state_dict(), {SOURCE: source})[1])
        return model
