"""Answering people: the modality a question needs, in evaluation mode, without gradients, leaving no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from modalities.base import Step
from zoo.models.driving import Driving

T = TypeVar("T")


class MissingModalityError(ValueError):
    """The model cannot do what was asked; the message says what it has."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it was in before."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


class Answering(Driving):
    """What the verbs need of a model: its modalities by type, in evaluation mode.

    types  name of each modality -> its registered type
    """

    types: dict[str, str]

    def find(self, kind: str) -> str:
        """The name of the modality of this registered type; where there are several, the one named like the type, else
        the first. Raises MissingModalityError saying what there is."""
        names = [name for name, found in self.types.items() if found == kind]
        if not names:
            held = ", ".join(dict.fromkeys(map(_say, self.types.values())))
            raise MissingModalityError(f"this model has no {_say(kind)} modality; it has {held}")
        return kind if kind in names else names[0]

    @contextmanager
    def _answering(self, kind: str) -> Iterator[tuple[Any, Step]]:
        """The modality of a type and a fresh step for it, in evaluation mode without gradients."""
        name = self.find(kind)
        with evaluating(self), torch.inference_mode():
            yield self.modalities[name], self.stepper(name)

    def _quietly(self, values: Iterator[T]) -> Iterator[T]:
        """The values, each computed in evaluation mode without gradients."""
        with evaluating(self):
            while True:
                with torch.inference_mode():
                    value = next(values, None)
                if value is None:
                    return
                yield value


def _say(kind: str) -> str:
    return kind.replace("_", " ")
