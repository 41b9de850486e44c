"""Flow matching: a straight path from image to noise, and the velocity along it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from modalities.diffusion.objectives import Objective, ObjectiveSpec, Predict


@dataclass(frozen=True, kw_only=True)
class FlowSpec(ObjectiveSpec):
    """Flow matching on straight paths (rectified flow): x_t = (1 - t) image + t noise, velocity = noise - image.

    Liu et al. 2022 (arXiv 2209.03003), Lipman et al. 2022 (arXiv 2210.02747). Sampled with Euler steps.

    times   how t is drawn in training: uniform, or logit_normal (Esser et al. 2024, eq. 19), which prefers the middle
    mean    mean of the normal behind logit_normal; above 0 prefers noise
    std     its standard deviation
    shift   moves the sampling steps towards noise for values above 1 (Esser et al. 2024, eq. 23); 1 for even steps
    """

    times: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        for name in ("std", "shift"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a positive number")

    def build(self) -> Flow:
        return Flow(self)


class Flow(Objective):
    """See `FlowSpec`. Training needs no library; sampling uses the Euler scheduler of diffusers."""

    schedulers: ClassVar[tuple[str, ...]] = ("euler",)

    def __init__(self, spec: FlowSpec) -> None:
        self.spec = spec

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        if self.spec.times == "uniform":
            return torch.rand(count, generator=generator)
        return (torch.randn(count, generator=generator) * self.spec.std + self.spec.mean).sigmoid()

    def mix(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        return (1 - t) * clean + t * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - clean

    def run(
        self, predict: Predict, noise: Tensor, steps: int, scheduler: str, clip: bool, generator: torch.Generator
    ) -> Tensor:
        from diffusers import FlowMatchEulerDiscreteScheduler

        euler: Any = FlowMatchEulerDiscreteScheduler(shift=self.spec.shift)
        # Its own sigmas would end on 0.001 and spend the last step on nothing; these end on 1 / steps.
        euler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), device=noise.device)
        image = noise
        for moment in euler.timesteps:
            t = (moment / euler.config["num_train_timesteps"]).expand(len(image)).to(image)
            image = euler.step(predict(image, t), moment, image, return_dict=False)[0]
        return image
