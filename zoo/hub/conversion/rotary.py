"""Rotary positions in config.json: `rope_theta` with `rope_scaling`, or `rope_parameters` of transformers 5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import MismatchError
from zoo.spec import Plain

LIMIT, TRAINED = "max_position_embeddings", "original_max_position_embeddings"
FORMS = ("rope_theta", "rope_scaling", "rope_parameters")  # where releases look for positions
# kind -> (their field, ours, its type); what is not there keeps our default.
PARAMETERS: dict[str, tuple[tuple[str, str, type], ...]] = {
    "default": (),
    "linear": (("factor", "factor", float),),
    "dynamic": (("factor", "factor", float),),
    "yarn": (
        ("factor", "factor", float),
        ("beta_fast", "beta_fast", float),
        ("beta_slow", "beta_slow", float),
        ("truncate", "truncate", bool),
        ("attention_factor", "attention_factor", float),
        ("mscale", "mscale", float),
        ("mscale_all_dim", "mscale_all_dim", float),
    ),
    "llama3": (
        ("factor", "factor", float),
        ("low_freq_factor", "low_freq_factor", float),
        ("high_freq_factor", "high_freq_factor", float),
    ),
    "longrope": (
        ("factor", "factor", float),
        ("short_factor", "short", list),
        ("long_factor", "long", list),
        ("attention_factor", "attention_factor", float),
    ),
}
OLD_NAMES = {"su": "longrope"}


@dataclass(frozen=True)
class Rotary:
    """rope: keys of backbone.rope; partial: share of a head that turns."""

    rope: Plain
    partial: float = 1.0


def rotary(
    fields: Fields,
    *,
    theta: float = 10000.0,
    partial: float | None = None,
    adapt: Callable[[Fields, Plain], Plain] | None = None,
) -> Rotary:
    """The rotary positions of a checkpoint; theta and partial are the family's defaults, partial None where it turns
    whole heads alone. adapt(form, scaling) is what a family makes of a scaling whose form has fields of its own.

    Where both forms are there, they are read as transformers does: the scaling from `rope_scaling`, theta from the form
    that scales first. Raises SpecError for a scaling that is not supported, for a different one per layer type, and for
    a share of a head in a family that turns whole ones.
    """
    base = fields.get("rope_theta", float, theta)
    share = fields.get("partial_rotary_factor", float, 1.0 if partial is None else partial)
    rope: Plain = {"theta": base}
    forms = [form for form in (fields.child("rope_scaling"), fields.child("rope_parameters")) if form is not None]
    for form in reversed(forms):
        rope = {"theta": form.get("rope_theta", float, rope["theta"])}
        share = form.get("partial_rotary_factor", float, share)
        found = _scaling(form, fields)
        if found is not None:
            rope["scaling"] = found if adapt is None else adapt(form, found)
    if partial is None and share != 1:
        raise fields.error("partial_rotary_factor", f"got {share}, supported is 1 in this family")
    return Rotary(rope, share)


def _scaling(form: Fields, fields: Fields) -> Plain | None:
    """The scaling that a nested mapping names, None for none."""
    kind = form.get(("rope_type", "type"), str, "default")
    kind = OLD_NAMES.get(kind, kind)
    if kind not in PARAMETERS:
        raise form.error("rope_type", f"got {kind!r}, supported are {', '.join(PARAMETERS)}")
    if kind == "default":
        return None
    limit = fields.get(LIMIT, int, None)
    plain: Plain = {"type": kind}
    for theirs, ours, expected in PARAMETERS[kind]:
        value = form.get(theirs, expected, None)
        if value is not None:
            plain[ours] = value
    if kind != "linear":
        inside = form.get(TRAINED, int, None)
        trained = fields.get(TRAINED, int, None)
        context = limit if kind == "dynamic" else trained or inside or limit
        if context is None:
            raise form.error(TRAINED, f"missing, and so is {LIMIT}")
        plain["context"] = context
        if "factor" not in plain and limit is not None:
            plain["factor"] = limit / context
    return plain


def write_rotary(trunk: Plain, partial: float = 1.0) -> Plain:
    """Both forms, so that releases before and after transformers 5 read the same."""
    rope = trunk["rope"]
    inner: Plain = {"rope_type": "default"}
    plain: Plain = {"rope_theta": rope["theta"], "rope_scaling": None}
    if rope["scaling"] is not None:
        inner, limit = _write_scaling(rope["scaling"])
        plain |= {"rope_scaling": dict(inner)} | ({} if limit is None else {LIMIT: limit})
    if partial != 1:
        plain["partial_rotary_factor"] = inner["partial_rotary_factor"] = partial
    return {**plain, "rope_parameters": {**inner, "rope_theta": rope["theta"]}}


def _write_scaling(scaling: Plain) -> tuple[Plain, int | None]:
    """Their mapping, and the greatest length that goes with it where there is one."""
    kind = scaling["type"]
    if kind not in PARAMETERS:
        raise MismatchError(f"backbone.rope.scaling: {kind} has no form in config.json")
    inner: Plain = {"rope_type": kind}
    inner |= {theirs: scaling[ours] for theirs, ours, _ in PARAMETERS[kind] if scaling[ours] is not None}
    context = scaling.get("context")
    if context is None or kind == "dynamic":
        return inner, context
    return inner | {TRAINED: context}, int(context * scaling["factor"])
