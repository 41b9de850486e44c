"""A public checkpoint's folder to a model of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from zoo.hub import memory, skeleton, tensors
from zoo.hub.conversion import quantised, stream
from zoo.hub.conversion.family import Family, supported
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.pieces import Piece
from zoo.models.origin import Origin
from zoo.spec import Plain, SpecError, dump, parse

if TYPE_CHECKING:
    from zoo.models.unified import Unified, UnifiedSpec

SPARE = 1 << 24  # parameters a description may promise beyond the files before the shapes are compared one by one


def describe(content: Mapping[str, Any], where: Path) -> tuple[Family, UnifiedSpec]:
    """The family and the spec of a foreign config.json. Raises SpecError naming the field."""
    from zoo.models.unified import ModelSpec

    family = supported(content, str(where))
    language, _ = family.read(content, str(where))
    try:
        return family, cast("UnifiedSpec", parse(ModelSpec, language.plain()))
    except SpecError as error:
        raise SpecError(f"{where}: as a {family.name}: {error}") from error


def full(spec: UnifiedSpec) -> Language:
    """A spec's language model with every default written out."""
    plain: Plain = dump(spec)
    return Language.of(plain)


@dataclass(frozen=True)
class Plan:
    """A public checkpoint whose tensors all fit, before any of them is read.

    family   its family
    spec     what it is
    model    built, its parameters without memory
    layout   which of the family's layouts its names have
    pieces   every tensor of that layout
    read     tensors that are to be read
    ignored  names of those that are left unread, as the family says
    """

    family: Family
    spec: UnifiedSpec
    model: Unified
    layout: str
    pieces: list[Piece]
    read: dict[str, tensors.Stored]
    ignored: tuple[str, ...]


def plan(folder: Path, content: Mapping[str, Any]) -> Plan:
    """How a public checkpoint is to be read: its config.json and the headers of its files, checked against each other.

    Raises SpecError, FileNotFoundError, or WeightsError that lists every tensor that does not fit.
    """
    family, spec = describe(content, folder / "config.json")
    stored = quantised.unquantised(content, family.quantised, tensors.contents(folder), folder)
    check_size(spec.cost().total, stored, folder)
    model = cast("Unified", skeleton.build(spec.build))
    language = full(spec)
    layout, pieces = stream.layout_of(family, language, stored)
    read = stream.match(family, pieces, stored, model.state_dict(), family.surplus(content, language), folder)
    model.origin = Origin(family.name, quantised.without(content), folder)
    return Plan(family, spec, model, layout, pieces, read, tuple(sorted(stored.keys() - read.keys())))


def load(
    folder: Path,
    content: Mapping[str, Any],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    *,
    pack: bool = False,
) -> Unified:
    """The model of a public checkpoint, read straight to its place, precision and device, packed where asked.

    Anonymous memory is that of the model: files are mapped, and copied tensor by tensor. Raises as `plan` does, before
    anything is allocated.
    """
    return filled(plan(folder, content), dtype, device, pack=pack)


def filled(found: Plan, dtype: torch.dtype | None, device: torch.device | str | None, *, pack: bool = False) -> Unified:
    """The planned model with its weights; on the device "meta" with their shapes and precisions alone."""
    packed = memory.packable(found.model) if pack else ()
    values = stream.allocate(found.model, found.pieces, found.read, dtype, device, packed)
    if device is None or torch.device(device).type != "meta":  # else the description is all that is asked for
        stream.fill(values, found.pieces, found.read)
    found.model.load_state_dict(values, assign=True)
    return found.model


def check_size(promised: int, stored: Mapping[str, tensors.Stored], folder: Path) -> None:
    """Raises WeightsError where config.json describes far more than the files hold: building it could take for ever."""
    held = sum(math.prod(s.shape) for s in stored.values())
    if promised > 2 * held + SPARE:
        raise tensors.WeightsError(f"{folder}: config.json describes {promised} parameters, the files hold {held}")
