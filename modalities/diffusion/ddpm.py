"""DDPM: noise in many small steps, with the schedulers of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from modalities.diffusion.objectives import Objective, ObjectiveSpec, Predict


@dataclass(frozen=True, kw_only=True)
class DdpmSpec(ObjectiveSpec):
    """Denoising diffusion (Ho et al. 2020, arXiv 2006.11239) with the schedulers of diffusers.

    Sampled with DDIM (Song et al. 2020, arXiv 2010.02502), or with DDPM's own random steps.

    steps        number of noise levels in training
    schedule     how the noise grows: linear, scaled_linear or squaredcos_cap_v2 (cosine)
    prediction   what the model predicts: v_prediction (Salimans and Ho 2022, eq. 9), epsilon (the noise) or sample (the
                 image); epsilon says nothing about the image where all is noise, so its sampling starts a little later
    """

    steps: int = 1000
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    prediction: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps: got {self.steps}, expected at least 2")

    def build(self) -> Ddpm:
        return Ddpm(self)


class Ddpm(Objective):
    """See `DdpmSpec`. Time t is (level + 1) / steps, level being what diffusers calls the timestep."""

    schedulers: ClassVar[tuple[str, ...]] = ("ddim", "ddpm")

    def __init__(self, spec: DdpmSpec) -> None:
        from diffusers import DDPMScheduler

        self.spec = spec
        self._noising: Any = DDPMScheduler(
            num_train_timesteps=spec.steps,
            beta_schedule=spec.schedule,
            prediction_type=spec.prediction,
            timestep_spacing="leading" if spec.prediction == "epsilon" else "trailing",
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return (torch.randint(0, self.spec.steps, (count,), generator=generator) + 1) / self.spec.steps

    def _level(self, t: Tensor) -> Any:
        """Diffusers' integer timesteps of times [B]; typed loosely because diffusers expects its own tensor classes."""
        return (t * self.spec.steps).round().long() - 1

    def mix(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self._noising.add_noise(clean, noise, self._level(t))

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.spec.prediction == "epsilon":
            return noise
        if self.spec.prediction == "sample":
            return clean
        return self._noising.get_velocity(clean, noise, self._level(t))

    def run(
        self, predict: Predict, noise: Tensor, steps: int, scheduler: str, clip: bool, generator: torch.Generator
    ) -> Tensor:
        from diffusers import DDIMScheduler, DDPMScheduler

        if steps > self.spec.steps:
            raise ValueError(f"steps: got {steps}, expected at most the {self.spec.steps} noise levels of training")
        kind: Any = DDIMScheduler if scheduler == "ddim" else DDPMScheduler
        walk = kind.from_config(self._noising.config, clip_sample=clip)
        walk.set_timesteps(steps, device=noise.device)
        image = noise
        for level in walk.timesteps:
            t = ((level + 1) / self.spec.steps).expand(len(image)).to(image)
            image = walk.step(predict(image, t), level, image, generator=generator, return_dict=False)[0]
        return image
