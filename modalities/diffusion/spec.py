"""The description of the diffusion modality."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from modalities.base import Modality, ModalitySpec
from modalities.diffusion.autoencoders import AutoencoderSpec, PixelsSpec
from modalities.diffusion.flow import FlowSpec
from modalities.diffusion.objectives import ObjectiveSpec

if TYPE_CHECKING:
    from modalities.diffusion.module import Diffusion

TIME_WIDTH = 128  # sines and cosines that describe the time step


@dataclass(frozen=True, kw_only=True)
class DiffusionSpec(ModalitySpec):
    """Images out of noise, for a class or a prompt.

    size         side of the square images in pixels; training files of another size are scaled and cropped to it
    channels     1 for grey, 3 for colour
    patch        side of a token's patch, in pixels or latents; has to divide their side
    condition    class: a learned embedding of the label; text: the prompt's tokens before the image
    classes      number of classes, where the condition is a class
    prompt       longest prompt in tokens, where the condition is text; longer ones are cut
    objective    what is learned: flow or ddpm
    autoencoder  where images are generated: pixels or diffusers
    inject       how time and class enter. cond: through the trunk's adaptive norms only (it needs adaLN); token:
                 added to every image token; both: both, which trains with and without adaLN
    drop         share of training rows that lose their condition, for classifier-free guidance
    steps        predictions per sampled image, unless `sample` is told otherwise
    guidance     weight w of classifier-free guidance, free + w (conditioned - free); 1 is the conditioned model alone,
                 at half the cost
    """

    axes: ClassVar[int] = 2

    size: int = 32
    channels: Literal[1, 3] = 3
    patch: int = 4
    condition: Literal["class", "text"] = "class"
    classes: int = 10
    prompt: int = 64
    objective: ObjectiveSpec = field(default_factory=FlowSpec)
    autoencoder: AutoencoderSpec = field(default_factory=PixelsSpec)
    inject: Literal["cond", "token", "both"] = "both"
    drop: float = 0.1
    steps: int = 20
    guidance: float = 2.0

    def __post_init__(self) -> None:
        for name in ("size", "patch", "classes", "prompt", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop: got {self.drop}, expected 0 <= drop < 1")
        if self.guidance != 1 and self.drop == 0:
            raise ValueError(
                f"guidance: got {self.guidance}, expected 1 with drop 0; guidance needs a model that has also seen"
                " rows without condition (drop 0.1)"
            )
        self.autoencoder.check(self.size, self.channels, self.patch)

    def check(self, dim: int, cond: int) -> None:
        if self.inject == "cond" and not cond:
            raise ValueError(
                f"inject: 'cond' needs adaptive norms in the trunk (backbone.cond: {dim} and adaln blocks), expected "
                "'token' or 'both' without them"
            )
        if self.inject != "token" and cond not in (0, dim):
            raise ValueError(
                f"inject: {self.inject!r} gives the trunk {dim} values (its width), but backbone.cond is {cond}; "
                f"expected backbone.cond: {dim}, or inject: token"
            )

    def build(self, dim: int, text: Modality | None = None) -> Diffusion:
        from modalities.diffusion.module import Diffusion

        return Diffusion(self, dim, text)

    def parameters(self, dim: int) -> int:
        """Patch embedding with places, time, class table, head and the frozen autoencoder."""
        channels, side = self.autoencoder.latent(self.size, self.channels)
        values = channels * self.patch**2
        places = (side // self.patch) ** 2
        time = (TIME_WIDTH + 1) * dim + (dim + 1) * dim
        table = (self.classes + 1) * dim if self.condition == "class" else 0
        embed, head = (values + 1 + places) * dim, (dim + 1) * values
        return embed + time + table + head + self.autoencoder.parameters(self.channels)
