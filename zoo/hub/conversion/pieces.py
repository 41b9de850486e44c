"""Tensors of a foreign checkpoint as views of ours: reversible, and exact to the byte, by construction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Place:
    """A view of a tensor, as a chain of steps that copy nothing: `WHOLE.index(3).rows(0, 128)`."""

    steps: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def _then(self, name: str, *arguments: Any) -> Place:
        return Place((*self.steps, (name, arguments)))

    def index(self, i: int, axis: int = 0) -> Place:
        """Entry i of an axis, which goes."""
        return self._then("select", axis, i)

    def rows(self, start: int, stop: int, axis: int = 0) -> Place:
        """Entries start..stop-1 of an axis."""
        return self._then("narrow", axis, start, stop - start)

    def swap(self, a: int = 0, b: int = 1) -> Place:
        """Two axes exchanged."""
        return self._then("transpose", a, b)

    def unflatten(self, axis: int, *sizes: int) -> Place:
        """An axis cut into several."""
        return self._then("unflatten", axis, sizes)

    def __call__(self, ours: Tensor) -> Tensor:
        """The view."""
        for name, arguments in self.steps:
            ours = getattr(ours, name)(*arguments)
        return ours


WHOLE = Place()


@dataclass(frozen=True)
class Piece:
    """Their tensor `theirs` equals, element for element in order, the view `place` of our tensor `ours`.

    theirs   name in the checkpoint
    ours     name in the model's state dict
    place    which part of ours, in which order of axes
    shape    shape of theirs where it is not the view's (the elements are in the same order)
    again    theirs repeats what another piece gives (a head that is tied to the embedding): it may be absent, has to be
             equal where it is there, and is left out on export
    part     which part of theirs it is, where theirs (of this `shape`) holds several of ours; None for all of it
    """

    theirs: str
    ours: str
    place: Place = WHOLE
    shape: tuple[int, ...] | None = None
    again: bool = False
    part: Place | None = None

    def view(self, state: Mapping[str, Tensor]) -> Tensor:
        """The part of ours that holds theirs, in the order of its axes."""
        return self.place(state[self.ours])

    def form(self, state: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The shape of theirs."""
        return tuple(self.view(state).shape) if self.shape is None else self.shape

    def within(self, theirs: Tensor) -> Tensor:
        """The part of theirs that this piece is, a view."""
        return theirs if self.part is None else self.part(theirs)


def by_name(pieces: Iterable[Piece]) -> dict[str, tuple[Piece, ...]]:
    """The pieces of each tensor of theirs, in order of first mention."""
    found: dict[str, tuple[Piece, ...]] = {}
    for piece in pieces:
        found[piece.theirs] = (*found.get(piece.theirs, ()), piece)
    return found


def together(pieces: Iterable[Piece], state: Mapping[str, Tensor]) -> Tensor:
    """Their tensor from its pieces: a view of ours where there is one alone."""
    first, *others = pieces
    if not others and first.part is None:
        return first.view(state).reshape(first.form(state))
    out = first.view(state).new_empty(first.form(state))
    for piece in (first, *others):
        target = piece.within(out)
        target.copy_(piece.view(state).reshape(target.shape))
    return out


def unproduced(pieces: Iterable[Piece], state: Mapping[str, Tensor]) -> dict[str, int]:
    """Names of ours of which the pieces do not give each element once, with the number given too few (negative: too
    many). Counts elements; that they do not overlap is left to the tests."""
    left = {name: value.numel() for name, value in state.items()}
    for piece in pieces:
        if piece.again:
            continue
        left[piece.ours] = left.get(piece.ours, 0) - (piece.view(state).numel() if piece.ours in state else 1)
    return {name: count for name, count in left.items() if count}
