"""Models from descriptions, and their tokenizer and feature side alone."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.hub.entries import plain_spec
from zoo.spec import override, parse

if TYPE_CHECKING:
    from zoo.models.unified import Unified


def create(ref: str | os.PathLike[str] | Mapping[str, Any], *, seed: int = 0, **overrides: Any) -> Unified:
    """A model with random weights: of an entry's name, a YAML file, a saved model's folder or a plain mapping.

    seed draws the weights; torch's global generator stays as it was. Overrides are dotted paths into the spec, a
    double underscore standing for the dot: `create("unimoe-tiny", backbone__dim=64, backbone__cond=64)`, or
    `create("unimoe-tiny", **{"backbone.layers.0.repeat": 2})`.
    Raises EntryError for an unknown name, SpecError for a spec that cannot be built, TypeError or ValueError for a seed
    that is no whole number of 64 bits.
    """
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed: got {seed!r}, expected a whole number") from None
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed: got {seed}, expected a whole number of 64 bits")
    import torch

    from zoo.models.unified import ModelSpec

    changes = {path.replace("__", "."): value for path, value in overrides.items()}
    spec = parse(ModelSpec, override(plain_spec(ref), changes, ModelSpec))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return spec.build()  # type: ignore[return-value]
