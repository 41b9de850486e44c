"""The surgery contract: a model in, a model out, as descriptions and weights, and how far outputs may move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zoo.models.unified import ModelSpec

State = dict[str, Tensor]
Described = tuple[ModelSpec, State]
"""A model as its description and its weights."""


@dataclass(frozen=True, kw_only=True)
class SurgerySpec:
    """The description of a surgery; `type` names it.

    bound  how far outputs may move: the greatest difference, relative to the largest output, between the result and the
           first of `sources()` (the model operated on where it has none), both of one description where the shapes
           allow it, in float32; None where nothing is promised
    """

    kind: ClassVar[str] = "surgery"
    bound: ClassVar[float | None] = None

    def sources(self) -> tuple[str, ...]:
        """The names of the other models it takes from; in a curriculum, earlier stages. None by default."""
        return ()

    def owner(self, modality: str) -> str | None:
        """The source whose encoder, heads and fitted values the result has for a modality; None where they are not
        taken over."""
        return None

    def keeps_zeros(self, name: str) -> bool:
        """Whether entries of this tensor that are zero in the result stay so while the stage trains. No by default."""
        return False

    def remembered(self) -> tuple[str, ...]:
        """The sources whose optimisers' moments `moments` takes up; none by default, and the result's optimiser begins
        anew."""
        return ()

    def moments(self, result: State, sources: Mapping[str, State], found: Mapping[str, State]) -> State:
        """What the optimiser remembers of the result's tensors from one kind of moment of the `remembered` sources'
        (found, by source and tensor; a number for what counts steps). sources holds their weights. Tensors that are
        left out begin anew."""
        raise NotImplementedError

    def check(self, spec: ModelSpec, sources: Mapping[str, ModelSpec]) -> None:
        """Raises ValueError("key: ...") where the descriptions alone tell that it cannot be done."""

    def apply(self, spec: ModelSpec, state: State, sources: Mapping[str, Described]) -> Described:
        """The description and weights of the result.

        spec and state are the model operated on: one to be filled (a stage's own, with random weights), or the one to
        be changed. sources holds `sources()` by name. Changes none of the tensors it is given.
        Raises ValueError naming what does not fit.
        """
        raise NotImplementedError


def take(state: State, name: str, like: Tensor) -> Tensor:
    """A copy of one tensor of a source for the place of `like`, which may be empty where its size is fitted.

    Raises ValueError naming the tensor and both shapes."""
    if name not in state or (like.numel() and state[name].shape != like.shape):
        found = tuple(state[name].shape) if name in state else "nothing"
        raise ValueError(f"{name}: expected {tuple(like.shape)} in the source, found {found}")
    return state[name].clone()
