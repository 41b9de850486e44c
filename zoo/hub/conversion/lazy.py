"""A public checkpoint's weights by our names, each put together when it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from zoo.hub.conversion import stream
from zoo.hub.conversion.checkpoint import Plan
from zoo.hub.conversion.pieces import Piece

KEPT = 4  # tensors at a time: files are written name by name, and experts take turns between two of ours


class OnDisk(Mapping[str, Tensor]):
    """What the model's state dict would hold, never all of it: the tensors used last stay, the others are read again.

    dtype is that of `zoo.load`. Reading raises WeightsError where a tensor that repeats another differs from it.
    """

    def __init__(self, plan: Plan, dtype: torch.dtype | None = None) -> None:
        self._plan = plan
        self._forms = stream.allocate(plan.model, plan.pieces, plan.read, dtype, "meta")
        self._pieces: dict[str, list[Piece]] = {name: [] for name in self._forms}
        for piece in plan.pieces:
            self._pieces[piece.ours].append(piece)
        self._value = functools.lru_cache(maxsize=KEPT)(self._read)

    def __getitem__(self, name: str) -> Tensor:
        return self._value(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._forms)

    def __len__(self) -> int:
        return len(self._forms)

    def _read(self, name: str) -> Tensor:
        pieces, form = self._pieces[name], self._forms[name]
        value = torch.empty(form.shape, dtype=form.dtype)
        read = self._plan.read
        stream.fill({name: value}, pieces, {p.theirs: read[p.theirs] for p in pieces if p.theirs in read})
        return value
