"""What leaving out loss spikes is worth, where spikes are made (Ling, arXiv 2503.05139)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch

from modalities.text.module import Text
from training.callbacks.spikes import SpikeGuard
from training.claims import lab
from training.claims.base import TrainedClaim
from training.claims.lab import Outcome
from training.guard import Micro
from training.seeds import generator
from zoo.claims import Finding
from zoo.hub.entries import Entry


class Disturb(L.Callback):
    """Every `every` steps a batch of random ids at `factor` times the learning rate."""

    def __init__(self, every: int, factor: float, seed: int) -> None:
        """
        Args:
            every: Steps from one disturbance to the next.
            factor: On the learning rate of a disturbed step.
            seed: Of the ids.
        """
        self.every, self.factor, self.seed = every, factor, seed
        self.module: Any = None
        self.rate = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Takes the module with its rate, and its model, whose text modality makes batches of ids."""
        self.module, self.rate = pl_module, float(pl_module.lr)  # type: ignore[arg-type]

    def disturbed(self, step: int) -> bool:
        """Whether it is this step's turn."""
        return step > 0 and step % self.every == 0

    def amend(self, step: int, batch: Sequence[Micro]) -> Sequence[Micro]:
        """The batch, or random ids in its shape. The rate is set here: a guard's factor could be outvoted."""
        disturbed = self.disturbed(step)
        self.module.lr = self.rate * (self.factor if disturbed else 1.0)
        return [self._random(step, micro) for micro in batch] if disturbed else batch

    def allow(self, step: int, loss: float, norm: float, batch: Sequence[Micro]) -> float:
        """Objects to nothing."""
        return 1.0

    def _random(self, step: int, micro: Micro) -> Micro:
        name, batch = micro
        text: Text = self.module.model.modality(name)
        draws = generator(self.seed, "disturb", step)
        rows = torch.randint(text.tokenizer.vocab_size, batch["ids"].shape, generator=draws)
        return name, text.batch(list(rows))


@dataclass(frozen=True, kw_only=True)
class SpikesLeftOutSpec(TrainedClaim):
    """With disturbed steps in training, held-out loss is lower where SpikeGuard leaves them out and tries again.

    every   steps from one disturbed step to the next
    factor  on the learning rate of a disturbed step
    guard   SpikeGuard's settings
    by      nats per byte by which the loss is to be lower at least
    """

    every: int = 50
    factor: float = 100.0
    guard: dict[str, Any] = field(default_factory=lambda: {"start": 20})
    by: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: got {self.every}, expected 1 or more")
        if self.factor < 1:
            raise ValueError(f"factor: got {self.factor}, expected 1 or more")
        SpikeGuard(**self.guard)

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        guard = SpikeGuard(**self.guard)
        own, other = self._trained(entry, seed, progress, [guard]), self._trained(entry, seed, progress, [])
        gap = other.measured.loss - own.measured.loss
        note = (
            f"{own.measured.loss:.4f} nats per byte with {len(guard.skipped)} steps left out (at {guard.skipped}) and "
            f"{len(guard.lowered)} tried again at a lower rate; {other.measured.loss:.4f} without; random ids at "
            f"{self.factor:g} times the rate every {self.every} steps"
        )
        return Finding(gap, f"loss lower with SpikeGuard by more than {self.by:g}", gap > self.by, note)

    def _trained(self, entry: Entry, seed: int, progress: bool, guards: list[SpikeGuard]) -> Outcome:
        callbacks = [Disturb(self.every, self.factor, seed), *guards]
        with lab.bar(self.train.steps, progress) as tick:
            return lab.run(self.described(entry), self.train, seed=seed, tick=tick, callbacks=callbacks)
