"""Foreign weights into a model: from disk straight to their place, tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from modalities.precise import Precise
from zoo.hub import memory, tensors
from zoo.hub.conversion.family import Family
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.pieces import Piece, by_name, unproduced
from zoo.hub.tensors import Stored, WeightsError


def layout_of(family: Family, model: Language, stored: Mapping[str, Stored]) -> tuple[str, list[Piece]]:
    """The layout whose names differ least from those that are stored, and its pieces."""
    found = {layout: list(family.rules(model, layout)) for layout in family.layouts}

    def distance(layout: str) -> int:
        return len({piece.theirs for piece in found[layout] if not piece.again} ^ stored.keys())

    best = min(family.layouts, key=distance)
    return best, found[best]


def match(
    family: Family, pieces: Sequence[Piece], stored: Mapping[str, Stored], state: Mapping[str, Tensor],
    ignored: re.Pattern[str], where: Path,
) -> dict[str, Stored]:  # fmt: skip
    """The stored tensors that are to be read. Every one is consumed, but for names that are ignored, and every one of
    ours produced, or it is an error.

    Raises WeightsError that lists all missing, surplus and misshapen tensors.
    """
    left = {name: s for name, s in stored.items() if not ignored.fullmatch(name)}
    unknown = sorted({piece.ours for piece in pieces} - state.keys())
    if unknown:
        raise WeightsError(f"{where}: {family.name} fills {unknown[0]}, which the model does not have")
    wanted = [piece for piece in pieces if not piece.again or piece.theirs in left]
    expected = {piece.theirs: state[piece.ours].new_empty(piece.form(state), device="meta") for piece in wanted}
    tensors.check(left, expected, where)
    rest = unproduced(pieces, state)
    if rest:
        listed = "\n  ".join(f"{name}: {count} elements" for name, count in sorted(rest.items()))
        raise WeightsError(f"{where}: {family.name} leaves tensors of the model unset:\n  {listed}")
    return left


def allocate(
    model: nn.Module, pieces: Sequence[Piece], stored: Mapping[str, Stored], dtype: torch.dtype | None,
    device: torch.device | str | None, packed: Collection[str] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """Empty tensors for all of ours: in the precision of the file or in `dtype`, parts that stay precise excepted."""
    precise = {f"{name}." for name, module in model.named_modules() if isinstance(module, Precise)}
    held: dict[str, torch.dtype] = {}
    for piece in pieces:
        if not piece.again:
            here = stored[piece.theirs].dtype
            held[piece.ours] = torch.promote_types(held.get(piece.ours, here), here)

    def final(name: str) -> torch.dtype:
        have = held[name]
        if dtype is None or not have.is_floating_point:
            return have
        stays = dtype.itemsize < have.itemsize and any(name.startswith(prefix) for prefix in precise)
        return have if stays else dtype

    return {
        name: memory.room(value.shape, final(name), device, packed=name in packed)
        for name, value in model.state_dict().items()
    }


def fill(values: Mapping[str, Tensor], pieces: Sequence[Piece], stored: Mapping[str, Stored]) -> None:
    """Copies every stored tensor to its place. What repeats another is compared instead, once all others are there.

    The files are mapped, not read into memory, so nothing but `values` is held. Raises WeightsError.
    """
    named = by_name(pieces)
    again = []
    with torch.no_grad():
        for name, value in tensors.each(stored):
            if named[name][0].again:
                again.append(name)
                continue
            for piece in named[name]:
                target = piece.view(values)
                memory.put(piece.within(value).reshape(target.shape), target)
        for name, value in tensors.each({name: stored[name] for name in again}):
            _compare(named[name][0], value, values, stored[name].file)


def _compare(piece: Piece, value: Tensor, values: Mapping[str, Tensor], file: Path) -> None:
    mine = piece.view(values)
    if not torch.equal(mine, value.view(mine.shape).to(mine.device, mine.dtype)):
        raise WeightsError(
            f"{file}: {piece.theirs} differs from the tensor that config.json says it shares its weights with "
            "(tie_word_embeddings); expected equal tensors, or false there"
        )
