"""Micro-batches of one domain each: what experts then come to know of domains, by the scope of the balance loss."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from modalities.base import Batch, Raw
from modalities.text.module import Text
from training.claims.base import TrainedClaim
from training.claims.budget import TEXT, Budget
from training.claims.counting import text_name
from training.claims.lab import bar, one_thread
from training.claims.measuring import measure
from training.seeds import generator
from training.sources import SourceSpec
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.spec import Plain

MIRROR = str.maketrans(
    string.ascii_lowercase + string.ascii_uppercase, string.ascii_lowercase[::-1] + string.ascii_uppercase[::-1]
)


@dataclass(frozen=True)
class Domains:
    """A model after training on micro-batches of one domain each.

    loss         held-out, nats per byte, the mean over domains
    information  between the domain of a token and its expert, nats, the mean over layers
    whole        greatest over mean load of all domains together, the worst layer
    local        the same of a single domain, the mean over domains and layers
    """

    loss: float
    information: float
    whole: float
    local: float


def domains(split: str) -> list[list[Raw]]:
    """Texts of different kinds: plays (where they are at hand) and documentation of code, each as it is and with its
    alphabet mirrored, so that the same bytes mean other things."""
    found: list[list[Raw]] = []
    for data in TEXT:
        try:
            raws = list(SourceSpec(data=data).raws("text", split))
        except ValueError:
            continue
        found += [raws, [{**raw, "text": raw["text"].translate(MIRROR)} for raw in raws]]
    return found


def information(loads: np.ndarray) -> float:
    """Mutual information in nats of domain and expert, domains weighing alike: loads [domains, E]."""
    joint = loads / loads.sum(1, keepdims=True) / len(loads)
    apart = joint.sum(0, keepdims=True) / len(loads)
    return float((joint * np.log(np.where(joint > 0, joint, 1) / np.where(joint > 0, apart, 1))).sum())


@dataclass(frozen=True, kw_only=True)
class SpecialisationSpec(TrainedClaim):
    """Experts know domains better than under an exchange, where every micro-batch holds one domain: mutual information
    of domain and expert, over that of the same system with the exchange.

    overrides  what is exchanged for the comparison, by dotted path
    at_least   least ratio
    """

    overrides: dict[str, Any]
    at_least: float = 2.0

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own = kept(self.described(entry), self.train, seed, progress)
        other = kept(self.described(entry, self.overrides), self.train, seed, progress)
        ratio = own.information / max(other.information, 1e-9)
        note = f"{_said(own)}; with {dict(self.overrides)}: {_said(other)}"
        return Finding(ratio, f"at least {self.at_least:g} times the information", ratio >= self.at_least, note)


@dataclass(frozen=True, kw_only=True)
class DomainsEvenSpec(TrainedClaim):
    """Where every micro-batch holds one domain, all domains together use the experts evenly.

    at_most  greatest over mean load that the worst layer may have
    """

    at_most: float = 1.5

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own = kept(self.described(entry), self.train, seed, progress)
        expected = f"greatest over mean load at most {self.at_most:g} in the worst layer"
        return Finding(own.whole, expected, own.whole <= self.at_most, _said(own))


@dataclass(frozen=True, kw_only=True)
class DomainsBesideSpec(TrainedClaim):
    """A figure of training on micro-batches of one domain each, minus that under an exchange.

    figure     loss (held-out, nats per byte), information (of domain and expert, nats), whole (greatest over mean load
               of all domains together) or local (of one domain)
    overrides  what is exchanged for the comparison, by dotted path
    below      what the difference must be less than
    """

    figure: Literal["loss", "information", "whole", "local"]
    overrides: dict[str, Any]
    below: float = 0.0

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own = kept(self.described(entry), self.train, seed, progress)
        other = kept(self.described(entry, self.overrides), self.train, seed, progress)
        gap = getattr(own, self.figure) - getattr(other, self.figure)
        note = f"{_said(own)}; with {dict(self.overrides)}: {_said(other)}"
        return Finding(gap, f"{self.figure} minus the other's below {self.below:g}", gap < self.below, note)


def _said(found: Domains) -> str:
    return (
        f"{found.information:.4f} nats, loss {found.loss:.4f}, greatest over mean load {found.whole:.2f} "
        f"(one domain {found.local:.2f})"
    )


_KEPT: dict[str, Domains] = {}


def kept(plain: Plain, budget: Budget, seed: int, progress: bool) -> Domains:
    """As `trained`, remembered: several claims look at the same training."""
    key = json.dumps([plain, asdict(budget), seed], sort_keys=True)
    if key not in _KEPT:
        _KEPT[key] = trained(plain, budget, seed, progress)
    return _KEPT[key]


def trained(plain: Plain, budget: Budget, seed: int, progress: bool) -> Domains:
    """Trains on steps of one micro-batch per domain, each of `rows / domains` windows; reads held-out text of all."""
    from training.data import Fixed
    from training.module import UnifiedModule
    from training.run import quiet

    train, held = domains("train"), domains("test")
    with one_thread(), bar(budget.steps, progress) as tick:
        module = UnifiedModule(
            plain, lr=budget.lr, schedule=budget.schedule, warmup=budget.warming, decay=budget.decay,
            floor=budget.floor, seed=seed,
        )  # fmt: skip
        name = text_name(module.model.spec)
        text = module.model.modality(name)
        assert isinstance(text, Text)
        rows = max(budget.rows // len(train), 1)
        steps = [
            [(name, batch(text, raws, rows, seed, step, d)) for d, raws in enumerate(train)]
            for step in range(budget.steps)
        ]
        with quiet():
            _trainer(budget, tick).fit(module, train_dataloaders=Fixed(steps))
        found = [measure(module.model.eval(), name, raws, budget.held_out // len(held)) for raws in held]
    loads = np.array([[layer.load[: layer.routed] for layer in each.layers] for each in found], dtype=np.float64)
    together = (loads / loads.sum(2, keepdims=True)).sum(0)
    return Domains(
        loss=float(np.mean([each.loss for each in found])),
        information=float(np.mean([information(loads[:, layer]) for layer in range(loads.shape[1])])),
        whole=float((together.max(1) / together.mean(1)).max()),
        local=float((loads.max(2) / loads.mean(2)).mean()),
    )


def batch(text: Text, raws: Sequence[Raw], rows: int, *place: int) -> Batch:
    """Random windows of random documents, drawn for this place."""
    draw = generator("domains", *place)
    chosen = torch.randint(len(raws), (rows,), generator=draw).tolist()
    return text.collate([text.example(raws[i]) for i in chosen], draw)


def _trainer(budget: Budget, tick: Any) -> Any:
    import lightning as L

    from training.claims.watching import Watch

    return L.Trainer(
        max_steps=budget.steps, max_epochs=1, accelerator="cpu", devices=1, logger=False,
        callbacks=[Watch(max(budget.steps // budget.points, 1), tick)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=max(budget.steps // budget.points, 1),
    )  # fmt: skip
