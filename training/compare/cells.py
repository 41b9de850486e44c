"""Cells: one system with one seed, run once. A cell's file carries a hash of everything that decides its result."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.claims.budget import Budget
from training.claims.lab import Outcome, Tick, run
from training.claims.measuring import Layer
from zoo.claims import commit
from zoo.spec import Plain

FORMAT = 1  # of the cell's file and of what is measured
DECIDING = (
    "modalities/*.py", "modalities/text/*.py", "zoo/moe/**/*.py", "zoo/backbone/**/*.py", "zoo/models/*.py",
    "training/*.py", "training/claims/lab.py", "training/claims/measuring.py", "training/claims/budget.py",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A system with a seed.

    system  its name in the table
    seed    of weights, order of the text and noise
    plain   the whole description
    train   how it is trained and measured
    text    digest of the text that is read
    """

    system: str
    seed: int
    plain: Plain
    train: Budget
    text: str

    @property
    def key(self) -> str:
        """A hash of what decides the result: description, budget, text, seed, torch. Not of its name, and not of our
        own sources, whose digest the file holds instead, so that a table can tell."""
        decides = [FORMAT, self.plain, asdict(self.train), self.text, self.seed, torch.__version__]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]

    def path(self, folder: Path) -> Path:
        """Its file below the comparison's folder."""
        return folder / "cells" / f"{self.key}.json"


@dataclass(frozen=True)
class Measurement:
    """What a finished cell's file holds.

    loss     held-out loss, nats per byte
    losses   of each window, in nats, and counts its bytes
    curve    (step, training loss, training operations)
    speed    tokens trained per second of one thread's CPU time
    layers   what each MoE layer did to the held-out text
    total    parameters held, active those used for a token by the description's count
    used     operations per token with the experts that were really used
    commit   and sources: the commit and the digest of the package's files it was measured with
    """

    system: str
    seed: int
    loss: float
    losses: tuple[float, ...]
    counts: tuple[int, ...]
    curve: tuple[tuple[int, float, float], ...]
    speed: float
    layers: tuple[Layer, ...]
    total: int
    active: float
    used: float
    commit: str
    sources: str


def measure(cell: Cell, tick: Tick | None = None) -> Measurement:
    """Runs a cell."""
    outcome = run(cell.plain, cell.train, seed=cell.seed, tick=tick)
    return described(cell, outcome)


def described(cell: Cell, outcome: Outcome) -> Measurement:
    """An outcome as plain numbers."""
    found = outcome.measured
    return Measurement(
        system=cell.system,
        seed=cell.seed,
        loss=found.loss,
        losses=tuple(np.round(found.losses, 4).tolist()),
        counts=tuple(found.counts.tolist()),
        curve=tuple((point.step, point.loss, point.flops) for point in outcome.curve),
        speed=outcome.speed,
        layers=found.layers,
        total=outcome.cost.total,
        active=outcome.cost.active,
        used=outcome.active_flops,
        commit=commit(),
        sources=sources(),
    )


def save(cell: Cell, measurement: Measurement, folder: Path) -> Path:
    """Writes the cell's file beside its place and renames: it is there whole, or not at all."""
    path = cell.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "key": cell.key, "spec": cell.plain, "train": asdict(cell.train), "text": cell.text}
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(json.dumps(content | {"torch": torch.__version__, "measured": asdict(measurement)}) + "\n")
    return beside.replace(path)


def load(cell: Cell, folder: Path) -> Measurement | None:
    """What a finished cell found, under the name it has now; None where it has not been run.

    Raises ValueError naming the file where it cannot be read.
    """
    path = cell.path(folder)
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["measured"]
        layers = tuple(Layer(**{**layer, "load": tuple(layer["load"])}) for layer in found["layers"])
        curve = tuple((int(step), loss, spent) for step, loss, spent in found["curve"])
        lists = {key: tuple(found[key]) for key in ("losses", "counts")}
        return Measurement(**{**found, **lists, "layers": layers, "curve": curve, "system": cell.system})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no cell of this comparison ({error}); remove it to run it again") from error


def text_digest(budget: Budget) -> str:
    """Of the name and the texts of the data set that is taken."""
    source, digest = budget.source(), hashlib.sha256(budget.chosen().encode())
    for split in ("train", "test"):
        for raw in source.raws("text", split):
            digest.update(raw["text"].encode() + b"\0")
    return digest.hexdigest()[:20]


def sources() -> str:
    """Digest of the Python files that a figure can come from: the text modality, layers, trunk, models, training."""
    root, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for pattern in DECIDING:
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
