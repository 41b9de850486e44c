"""Loss spikes: the step is left out and its samples come back later (Ling, arXiv 2503.05139)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L

from training.guard import Micro
from training.ranks import gather, number
from training.seeds import generator


@dataclass
class Running:
    """Mean and variance that forget; the first values weigh alike."""

    decay: float
    seen: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, value: float) -> None:
        """Takes up a value."""
        self.seen += 1
        rate = max(1 - self.decay, 1 / self.seen)
        gap = value - self.mean
        self.mean += rate * gap
        self.variance = (1 - rate) * (self.variance + rate * gap * gap)


class SpikeGuard(L.Callback):
    """Leaves out the steps whose loss or gradient leaps up, and gives their samples a second chance.

    A step is a spike where its loss is more than `deviations` standard deviations above its running mean and more than
    `ratio` times that, or where its gradient norm is more than `norm_ratio` times its own. The first time, the step is
    left out (weights, optimiser state, selection biases and schedule stay) and its micro-batches join one of the next
    `within` steps. If that step leaps up again it is applied at `factor` times the learning rate. Running means take a
    spike for no more than its limit, so that a level that rises for good is accepted after a while.
    """

    def __init__(
        self,
        deviations: float = 4.0,
        ratio: float = 1.1,
        norm_ratio: float = 5.0,
        decay: float = 0.98,
        start: int = 50,
        within: int = 20,
        factor: float = 0.5,
        seed: int = 0,
    ) -> None:
        """
        Args:
            deviations: Standard deviations above the running mean of the loss that make a spike.
            ratio: Factor on the running mean of the loss that a spike exceeds too.
            norm_ratio: Factor on the running mean of the gradient norm that makes a spike by itself.
            decay: How much of the running figures is kept at a step.
            start: Steps before the first judgement.
            within: Steps among which the one that takes up the samples again is drawn.
            factor: On the learning rate of a step that is a spike although it was tried before.
            seed: Of that draw.
        """
        if not 0 < decay < 1:
            raise ValueError(f"decay: got {decay}, expected more than 0 and less than 1")
        if not 0 < factor <= 1:
            raise ValueError(f"factor: got {factor}, expected more than 0 and at most 1")
        for name, value in (("start", start), ("within", within)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected 1 or more")
        for name, limit in (("ratio", ratio), ("norm_ratio", norm_ratio)):
            if limit < 1:
                raise ValueError(f"{name}: got {limit}, expected 1 or more")
        self.deviations, self.ratio, self.norm_ratio, self.start = deviations, ratio, norm_ratio, start
        self.within, self.factor, self.seed = within, factor, seed
        self.loss, self.norm = Running(decay), Running(decay)
        self.pending: list[tuple[int, list[Micro]]] = []
        self.again = False
        self.skipped: list[int] = []
        self.lowered: list[int] = []

    def amend(self, step: int, batch: Sequence[Micro]) -> Sequence[Micro]:
        """The step's micro-batches, and those of a step that was left out when their time has come."""
        due = min(self.pending, key=lambda entry: entry[0], default=None)
        self.again = due is not None and due[0] <= step
        if due is None or not self.again:
            return batch
        self.pending.remove(due)
        return [*batch, *due[1]]

    def allow(self, step: int, loss: float, norm: float, batch: Sequence[Micro]) -> float:
        """1; 0 for a spike; `factor` for one that was tried before."""
        over_loss, over_norm = self._limits()
        spike = self.loss.seen >= self.start and (loss > over_loss or norm > over_norm)
        self.loss.add(min(loss, over_loss) if spike else loss)
        self.norm.add(min(norm, over_norm) if spike else norm)
        if not spike:
            return 1.0
        if self.again:
            self.lowered.append(step)
            return self.factor
        self.skipped.append(step)
        later = step + 1 + int(generator(self.seed, "spike", step).initial_seed() % self.within)
        self.pending.append((later, list(batch)))
        return 0.0

    def _limits(self) -> tuple[float, float]:
        """The loss and the gradient norm above which a step is a spike."""
        spread = self.deviations * self.loss.variance**0.5
        return max(self.loss.mean + spread, self.ratio * self.loss.mean), self.norm_ratio * self.norm.mean

    def state_dict(self) -> dict[str, Any]:
        """Running figures, and of every rank the micro-batches that wait."""
        figures = {name: [r.seen, r.mean, r.variance] for name, r in (("loss", self.loss), ("norm", self.norm))}
        return {**figures, "skipped": self.skipped, "lowered": self.lowered, "pending": gather(self.pending)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on; samples of another number of ranks cannot be told apart and are given up."""
        for name, running in (("loss", self.loss), ("norm", self.norm)):
            running.seen, running.mean, running.variance = state_dict[name]
        self.skipped, self.lowered = list(state_dict["skipped"]), list(state_dict["lowered"])
        waiting, (rank, world) = state_dict["pending"], number()
        if len(waiting) == world:
            self.pending = [(int(step), list(batch)) for step, batch in waiting[rank]]
        elif any(waiting):
            warnings.warn(
                "SpikeGuard: the samples of steps left out are lost, the number of ranks changed", stacklevel=2
            )
