"""What a diffusion model learns and how it is sampled. The socket "objective".

Both objectives share one time: t in [0, 1], 0 is the image and 1 is noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # (noisy [B, C, H, W], t [B]) -> prediction [B, C, H, W]


class Objective:
    """Noising, target and sampling. Stateless; every draw comes from the generator that is passed in."""

    schedulers: ClassVar[tuple[str, ...]]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Times [count] for a training step, float32 on the CPU."""
        raise NotImplementedError

    def mix(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noisy image at time t [B]."""
        raise NotImplementedError

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model is to predict from the noisy image and t."""
        raise NotImplementedError

    def run(
        self, predict: Predict, noise: Tensor, steps: int, scheduler: str, clip: bool, generator: torch.Generator
    ) -> Tensor:
        """From noise to an image in `steps` predictions. `clip` bounds the estimated image to [-1, 1] on the way,
        where the scheduler knows how to."""
        raise NotImplementedError

    def sample(
        self,
        predict: Predict,
        noise: Tensor,
        *,
        steps: int,
        generator: torch.Generator,
        clip: bool,
        scheduler: str | None = None,
    ) -> Tensor:
        """As `run`, with the first of `schedulers` where none is named. Raises ValueError for what does not fit."""
        if steps < 1:
            raise ValueError(f"steps: got {steps}, expected at least 1")
        name = scheduler or self.schedulers[0]
        if name not in self.schedulers:
            raise ValueError(f"scheduler: got {name!r}, expected one of {', '.join(self.schedulers)}")
        return self.run(predict, noise, steps, name, clip, generator)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """What a diffusion model learns and how it is sampled."""

    kind: ClassVar[str] = "objective"

    def build(self) -> Objective:
        """The objective described."""
        raise NotImplementedError
