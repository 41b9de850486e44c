"""What a model refuses because a modality and the trunk do not fit."""

from __future__ import annotations

from typing import Any

import pytest

import zoo
from zoo.spec import SpecError

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
    ],
)
def test_conditioning_that_the_trunk_cannot_take_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        zoo.create("unimoe-tiny", **changes)


def test_conditioning_by_tokens_needs_nothing_of_the_trunk() -> None:
    plain = {"backbone.cond": 0, "backbone.layers.0.block": SEQUENTIAL, "backbone.dim": 64}
    assert zoo.create("unimoe-tiny", **plain).spec.modalities["diffusion"].inject == "both"  # type: ignore[attr-defined]
