"""A model of ours to the layout of a public family, which transformers, vLLM and SGLang read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from modalities.precise import Precise
from zoo.hub import files, tensors
from zoo.hub.card import CardFields
from zoo.hub.conversion.checkpoint import describe, full
from zoo.hub.conversion.family import FUSED, Family
from zoo.hub.conversion.language import Language, MismatchError
from zoo.hub.conversion.pieces import Piece, by_name, together
from zoo.hub.conversion.rotary import FORMS
from zoo.hub.conversion.same import differences
from zoo.hub.conversion.surplus import PREDICTORS
from zoo.hub.folder import check_target, replacing
from zoo.models.origin import Origin
from zoo.registry import nearest
from zoo.spec import Plain, SpecError, dump

if TYPE_CHECKING:
    from zoo.models.unified import Unified, UnifiedSpec

FORMATS = ("hf", "hf-stacked")
SHARD = 5 * 10**9  # bytes of a file where nothing else is asked for


class ExportError(ValueError):
    """A model that no public family describes; the message says where the nearest differs."""


def export(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    format: Literal["hf", "hf-stacked"] = "hf",
    dtype: torch.dtype | None = None,
    max_shard_size: int | None = None,
    family: str | None = None,
    overwrite: bool = False,
    values: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a language model as the public family it is: config.json, safetensors, tokenizer files, a README card.

    The family it was loaded from comes first, then any whose fields read back to the same model; `family` asks for one.
    `hf` writes the names that are on the hub; `hf-stacked` those that transformers 5 gives stacked experts. dtype is
    that of the weights where None; routers are never narrowed. Files hold max_shard_size bytes at most (5e9). values
    are the weights of a model without memory, asked for one by one. Written beside and renamed. Raises ExportError
    saying why no family fits, and FileExistsError as zoo.save does.
    """
    folder = Path(folder).expanduser()
    check_target(folder, overwrite)
    model = files.bare(model)
    ready = prepare(model, format=format, dtype=dtype, family=family)
    state = files.state_of(model) if values is None else values

    def value(name: str) -> Tensor:
        return together(ready.pieces[name], state).to("cpu", ready.forms[name].dtype).contiguous()

    with replacing(folder) as beside:
        (beside / "config.json").write_text(json.dumps(ready.fields, indent=2) + "\n", encoding="utf-8")
        files.write_tensors(beside, ready.forms, value, SHARD if max_shard_size is None else max_shard_size)
        files.write_beside(beside, folder.absolute().name, model, CardFields())
    return folder


@dataclass(frozen=True)
class Ready:
    """What an export will write.

    family  as which family
    layout  in which of its layouts
    fields  config.json
    pieces  their names, and which parts of ours each is
    forms   their names with shape and dtype, no memory
    """

    family: Family
    layout: str
    fields: Plain
    pieces: Mapping[str, tuple[Piece, ...]]
    forms: Mapping[str, Tensor]


def prepare(
    model: nn.Module, *, format: str = "hf", dtype: torch.dtype | None = None, family: str | None = None
) -> Ready:
    """What `export` would write. No weight is read: the model may be without memory. Raises as `export` does."""
    if format not in FORMATS:
        raise ValueError(f"format: got {format!r}, expected one of {', '.join(FORMATS)}")
    tensors.check_dtype(dtype)
    unified = cast("Unified", model)
    found, fields = choose(unified.spec, unified.origin, family)
    layout = found.layouts[0] if format == "hf" else _stacked(found)
    pieces = by_name(piece for piece in found.rules(full(unified.spec), layout) if not piece.again)
    state = model.state_dict()
    final = _final(model, dtype, state)
    precision = str(final[next(iter(pieces.values()))[0].ours]).removeprefix("torch.")
    forms = {n: torch.empty(p[0].form(state), dtype=final[p[0].ours], device="meta") for n, p in pieces.items()}
    return Ready(found, layout, {**fields, "dtype": precision, "torch_dtype": precision}, pieces, forms)


def choose(spec: UnifiedSpec, origin: Origin | None, only: str | None = None) -> tuple[Family, Plain]:
    """The family that a model is exported as, or `only` that one, and its fields in config.json.

    Fields of the checkpoint that it was loaded from are kept where the model is still the same with them.
    Raises ExportError, ValueError where there is no such family.
    """
    from zoo.hub.families import NAMES, family

    if only is not None and only not in NAMES:
        raise ValueError(f"family: no {only!r}{nearest(only, list(NAMES))}; there are {', '.join(sorted(NAMES))}")
    model = _readable(spec)
    first = None if origin is None else origin.family
    problems: dict[str, list[str]] = {}
    unlike: dict[str, tuple[bool, bool, int]] = {}  # of another kind sorts behind other numbers
    for name in sorted(NAMES, key=lambda name: name != first) if only is None else (only,):
        found = family(name)
        fields, problems[name] = _fields(found, model)
        unlike[name] = (name != first, not fields, len(problems[name]))
        if not problems[name]:
            kept = origin.fields if origin is not None and first == name else {}
            return found, _with_kept(fields, kept, model)
    closest = min(unlike, key=lambda name: unlike[name])
    listed = "\n  ".join(problems[closest][:8])
    subject = "no public family describes this model; " if only is None else "this model is of another family; "
    raise ExportError(f"{subject}as {closest} it would differ in\n  {listed}")


def _readable(spec: UnifiedSpec) -> Language:
    """The model with its tokenizer described by ids alone, as config.json does."""
    try:
        model = Language.of(dump(spec))
    except MismatchError as error:
        raise ExportError(f"no public family describes this model: {error}") from error
    text = spec.modalities[model.name]
    tokenizer = cast(Any, text).tokenizer.build()
    rows = cast(Any, text).rows(tokenizer.vocab_size)
    plain = model.text["tokenizer"]
    if plain["type"] != "files":
        plain = {"type": "files", "bos": tokenizer.bos, "eos": [tokenizer.eos], "pad": tokenizer.pad}
    return replace(model, text={**model.text, "vocab": None, "tokenizer": {**plain, "vocab_size": rows}})


def _fields(family: Family, model: Language) -> tuple[Plain, list[str]]:
    """The family's fields for a model, and where what they read back as differs from it."""
    head = {"architectures": [family.architecture], "model_type": family.name}
    try:
        fields = {**head, **family.config(model)}
    except MismatchError as error:
        return {}, [str(error)]
    except KeyError as error:
        return {}, [f"{error.args[0]}: a part that {family.name} does not have"]
    return fields, _problems(fields, model)


def _problems(fields: Plain, model: Language) -> list[str]:
    try:
        _, spec = describe(fields, Path("config.json"))
    except SpecError as error:
        return [str(error)]
    return differences(model, full(spec))


def _with_kept(fields: Plain, kept: Mapping[str, Any], model: Language) -> Plain:
    """The source's own fields with ours added (and positions in all forms), or the other way round, whichever still is
    this model; else ours."""
    said = {name: value for name, value in kept.items() if value is not None and name not in (*FORMS, PREDICTORS)}
    both = ({**kept, **fields, **said}, {**kept, **fields}) if kept else ()
    return next((merged for merged in both if not _problems(merged, model)), fields)


def _stacked(family: Family) -> str:
    if FUSED not in family.layouts:
        raise ExportError(f"format: {family.name} has no stacked experts; expected 'hf'")
    return FUSED


def _final(model: nn.Module, dtype: torch.dtype | None, state: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The precision in which each tensor of ours is written: parts that stay precise are never narrowed."""
    precise = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Precise))

    def one(name: str, value: Tensor) -> torch.dtype:
        if dtype is None or not value.is_floating_point():
            return value.dtype
        return value.dtype if dtype.itemsize < value.element_size() and name.startswith(precise) else dtype

    return {name: one(name, value) for name, value in state.items()}
