"""What a model refuses because a modality and the trunk do not fit."""

from __future__ import annotations

from typing import Any

import pytest

import zoo
from zoo.hub.entries import plain_spec
from zoo.models.unified import ModelSpec
from zoo.spec import SpecError, override, parse

SEQUENTIAL = {"type": "sequential", "attention": {"heads": 4}, "ffn": {"type": "dense", "hidden": 8}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone.dim": 64},
            r"modalities\.diffusion\.inject: 'both' .* expected backbone\.cond: 64, or inject: token",
        ),
        (
            {"backbone.cond": 0, "backbone.layers.0.block": SEQUENTIAL, "modalities.diffusion.inject": "cond"},
            r"modalities\.diffusion\.inject: 'cond' needs adaptive norms in the trunk",
        ),
        ({"backbone.layers.0.block": SEQUENTIAL}, r"^backbone\.cond: got 128, but no block reads the conditioning"),
    ],
)
def test_conditioning_that_the_trunk_cannot_take_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        zoo.create("unimoe-tiny", **changes)


def test_conditioning_by_tokens_needs_nothing_of_the_trunk() -> None:
    plain = {"backbone.cond": 0, "backbone.layers.0.block": SEQUENTIAL, "backbone.dim": 64}
    assert zoo.create("unimoe-tiny", **plain).spec.modalities["diffusion"].inject == "both"  # type: ignore[attr-defined]


@pytest.mark.parametrize("axes", [1, 3])
def test_a_trunk_without_the_axes_of_a_modality_is_refused_before_it_is_built(axes: int) -> None:
    plain = override(plain_spec("unimoe-tiny"), {"backbone.rope": {"axes": axes}})
    message = rf"^backbone\.rope\.axes: got {axes}, expected 2: tokens of modalities\.vision"
    with pytest.raises(SpecError, match=message):
        parse(ModelSpec, plain)
