"""Granite-MoE with one shared expert beside the routed ones."""

from __future__ import annotations

from zoo.hub.conversion import write
from zoo.hub.conversion.family import FUSED, SEPARATE, Family
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.language import Language, MismatchError
from zoo.hub.families import granitemoe
from zoo.spec import Plain


def spec(fields: Fields) -> Language:
    """A `shared_intermediate_size` of 0 is no shared expert."""
    hidden = fields.get("shared_intermediate_size", int, 0)
    return granitemoe.with_shared(fields, {"count": 1, "hidden": hidden} if hidden else None)


def config(model: Language) -> Plain:
    """The fields of Granite-MoE, and the width of the shared expert."""
    shared = write.mixture(model)["shared"]
    if shared is not None and shared["count"] != 1:
        raise MismatchError(f"ffn.shared.count: is {shared['count']}, expected 1")
    return {**granitemoe.common(model), "shared_intermediate_size": shared["hidden"] if shared else 0}


FAMILY = Family(
    name="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    spec=spec,
    config=config,
    rules=granitemoe.pieces,
    layouts=(SEPARATE, FUSED),
)
