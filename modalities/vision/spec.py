"""The description of the vision modality."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from modalities.base import Modality, ModalitySpec
from modalities.vision.towers import PatchTowerSpec, TowerSpec

if TYPE_CHECKING:
    from modalities.vision.module import Vision


@dataclass(frozen=True, kw_only=True)
class VisionSpec(ModalitySpec):
    """Images in, their class out.

    size       side of the square images in pixels; files of another size are scaled and cropped to it
    channels   1 for grey, 3 for colour; files of the other kind are converted
    classes    number of classes
    names      names of the classes, where the answer is given in words; their numbers when left out
    tower      what turns an image into tokens: patch or timm
    answer     class: a linear head on a query token; text: the class name, token by token, through the text modality
    shift      largest random translation of training images in pixels, against overfitting; 0 for none
    """

    axes: ClassVar[int] = 2

    size: int = 32
    channels: Literal[1, 3] = 3
    classes: int = 10
    names: tuple[str, ...] = ()
    tower: TowerSpec = field(default_factory=PatchTowerSpec)
    answer: Literal["class", "text"] = "class"
    shift: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: got {self.size}, expected at least 1 pixel")
        if self.classes < 2:
            raise ValueError(f"classes: got {self.classes}, expected at least 2")
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"names: got {len(self.names)} names, expected one for each of the {self.classes} classes")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"names: got {list(self.names)}, expected every class to have its own name")
        if not 0 <= self.shift < self.size:
            raise ValueError(f"shift: got {self.shift}, expected 0..{self.size - 1}")
        try:
            self.tower.check(self.size)
        except ValueError as error:
            raise ValueError(f"tower.{error}") from error

    def build(self, dim: int, text: Modality | None = None) -> Vision:
        from modalities.vision.module import Vision

        return Vision(self, dim, text)

    def parameters(self, dim: int) -> int:
        """Tower, query token and class head; an answer in words uses the text modality's own parameters."""
        head = (dim + 1) * self.classes if self.answer == "class" else 0
        return self.tower.parameters(self.size, self.channels, dim) + dim + head
