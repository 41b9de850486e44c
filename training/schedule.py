"""Learning-rate schedules as pure functions of the step, so that there is no state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["constant", "cosine", "wsd"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The factor on the learning rate.

    kind    constant; cosine (down to `floor` at the last step); wsd (warm-up, stable, then linear decay, arXiv
            2404.06395)
    warmup  steps of linear warm-up
    decay   with wsd: steps of the decay at the end
    floor   factor at the end
    """

    kind: Kind = "constant"
    warmup: int = 0
    decay: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup", "decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more steps")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor: got {self.floor}, expected 0..1, a factor on lr")
        if self.decay and self.kind != "wsd":
            raise ValueError(f"decay: belongs to schedule wsd, not to {self.kind}")

    def check(self, steps: int) -> None:
        """Raises ValueError where the schedule does not fit a run of `steps` steps."""
        if self.kind != "constant" and steps < 1:
            raise ValueError(f"schedule: {self.kind} needs the number of steps; set steps of the model or max_steps")
        if self.kind != "constant" and self.warmup + self.decay > steps:
            raise ValueError(f"warmup: {self.warmup} + decay {self.decay} are more than the run's {steps} steps")

    def factor(self, step: int, steps: int) -> float:
        """The factor at a step (0 is the first) of a run of `steps` steps."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "cosine":
            done = min((step - self.warmup) / max(steps - self.warmup, 1), 1.0)
            return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
        if self.kind == "wsd" and self.decay:
            left = min(max((steps - step) / self.decay, 0.0), 1.0)
            return self.floor + (1 - self.floor) * left
        return 1.0
