"""What a diffusion model learns and how it is sampled. The socket "objective".

Both objectives share one time: t in [0, 1], 0 is the image and 1 is noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
