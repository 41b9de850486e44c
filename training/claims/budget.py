"""How long, on what and how a small language model is trained and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.schedule import Kind, Schedule
from training.sources import SourceSpec
from zoo import registry

TEXT: tuple[dict[str, Any], ...] = ({"type": "tinyshakespeare"}, {"type": "docstrings"})


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Training and measuring of one small language model.

    steps     optimiser steps
    rows      windows of a step, each as long as the text modality says
    lr        peak learning rate of AdamW
    warmup    steps of linear warm-up, no more than a fifth of all
    schedule  constant, cosine or wsd
    decay     steps of the linear decay that ends schedule wsd
    floor     the schedule's last value, as a factor on lr
    data      text data sets; the first that is available is taken
    held_out  windows of held-out text that are measured, evenly spread
    points    points of the curve of the training loss
    """

    steps: int = 200
    rows: int = 8
    lr: float = 3e-3
    warmup: int = 20
    schedule: Kind = "cosine"
    decay: int = 0
    floor: float = 0.1
    data: tuple[dict[str, Any], ...] = TEXT
    held_out: int = 128
    points: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "held_out", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.lr <= 0:
            raise ValueError(f"lr: got {self.lr}, expected more than 0")
        Schedule(kind=self.schedule, warmup=self.warmup, decay=self.decay, floor=self.floor).check(
            self.steps + self.warmup - self.warming
        )

    @property
    def warming(self) -> int:
        """Steps of warm-up of a run this long."""
        return min(self.warmup, self.steps // 5)

    def source(self) -> SourceSpec:
        """The data as a source of a mixture. Raises ValueError where none is available."""
        source = SourceSpec(data=self.data, rows=self.rows)
        source.choose("text")
        return source

    def chosen(self) -> str:
        """The type of the data set that is taken. Raises ValueError where none is available."""
        return registry.type_of(self.source().choose("text"))

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.rows} windows of {self.chosen()}, {self.held_out} held-out windows"
