"""Rotary positions: both forms of config.json say the same, and what is written reads back."""

from __future__ import annotations

from typing import Any

import pytest

from zoo.backbone.rope import RopeSpec
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.rotary import LIMIT, TRAINED, rotary, write_rotary
from zoo.spec import SpecError, dump, parse

SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, TRAINED: 16, "mscale": 0.7, "mscale_all_dim": 1.0},
    {"rope_type": "yarn", "factor": 4.0, TRAINED: 16, "beta_fast": 20.0, "truncate": False, "attention_factor": 1.5},
    {"rope_type": "llama3", "factor": 8.0, TRAINED: 16, "low_freq_factor": 1.5, "high_freq_factor": 3.0},
    {"rope_type": "longrope", "factor": 4.0, TRAINED: 16, "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]},
]


def read(content: dict[str, Any], partial: float | None = None) -> Any:
    fields = Fields(content, "f")
    found = rotary(fields, partial=partial)
    assert fields.finish({LIMIT}) is not None
    return found


@pytest.mark.parametrize("scaling", SCALINGS)
def test_both_forms_agree_and_read_back(scaling: dict[str, Any]) -> None:
    old = read({LIMIT: 64, "rope_theta": 5e5, "rope_scaling": scaling})
    new = read({LIMIT: 64, "rope_parameters": {**scaling, "rope_theta": 5e5}})
    older = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    assert old == new == read({LIMIT: 64, "rope_theta": 5e5, "rope_scaling": older})
    spec = parse(RopeSpec, old.rope)
    written = write_rotary({"rope": dump(spec)})
    assert parse(RopeSpec, read({LIMIT: 64, **written}).rope) == spec
    assert written["rope_parameters"] == {**written["rope_scaling"], "rope_theta": 5e5}


def test_theta_and_partial_come_from_where_they_stand() -> None:
    assert read({}).rope == {"theta": 10000.0}
    assert read({"rope_theta": 5.0}).rope == {"theta": 5.0}
    assert (
        read({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}).rope["theta"] == 7.0
    )
    assert read({"rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.5}}, partial=1.0).partial == 0.5
    assert read({"partial_rotary_factor": 0.25}, partial=1.0).partial == 0.25
    written = write_rotary({"rope": dump(RopeSpec())}, 0.5)
    assert read(written, partial=1.0).partial == 0.5 and written["rope_scaling"] is None


def test_the_trained_length_and_the_factor_follow_from_the_lengths() -> None:
    long = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    found = read({LIMIT: 64, TRAINED: 16, "rope_scaling": long}).rope["scaling"]
    assert found["context"] == 16 and found["factor"] == 4.0
    assert read({LIMIT: 64, "rope_scaling": {"type": "yarn", "factor": 2.0}}).rope["scaling"]["context"] == 64
    with pytest.raises(SpecError, match=f"{TRAINED}: missing"):
        read({"rope_scaling": {"type": "yarn", "factor": 2.0}})
