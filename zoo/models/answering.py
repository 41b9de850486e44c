"""Answering people: the modality a question needs, in evaluation mode, without gradients, leaving no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from modalities.base import Step, Tokens
from zoo import registry
from zoo.backbone.cache import Cache
from zoo.backbone.trunk import Backbone, BackboneOutput

if TYPE_CHECKING:
    from zoo.models.unified import UnifiedSpec

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


class Answering(nn.Module):
    """What the verbs need of a model: a spec, modalities around a trunk, and `stepper` and `run` for them."""

    spec: UnifiedSpec
    backbone: Backbone
    modalities: nn.ModuleDict

    def stepper(self, name: str) -> Step:
        """A fresh step for sampling one modality."""
        raise NotImplementedError

    def run(
        self,
        tokens: Tokens,
        name: str,
        cache: Cache | None = None,
        *,
        step: Tensor | None = None,
        seed: int | None = None,
        output_hidden: bool = False,
    ) -> BackboneOutput:
        """The trunk over one modality's tokens."""
        raise NotImplementedError

    def find(self, kind: str) -> str:
        """The name of the modality of this registered type; where there are several, the one named like the type, else
        the first. Raises MissingModalityError saying what there is."""
        types = {name: registry.type_of(spec) for name, spec in self.spec.modalities.items()}
        names = [name for name, found in types.items() if found == kind]
        if not names:
            held = ", ".join(dict.fromkeys(map(_say, types.values())))
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
