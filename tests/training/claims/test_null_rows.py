"""Null rows at a size: the routing is put where tau says, and the promise is the ratio of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training.claims import null_rows
from training.claims.null_rows import NullRowsPaySpec
from zoo.hub.entries import find_entry
from zoo.spec import parse

TINY = {"dim": 16, "hidden": 8, "tokens": 240, "rounds": 1}


def test_slots_stand_as_tau_to_one_and_the_networks_are_shared() -> None:
    ffn = null_rows.layer_of(find_entry("moe-plus-plus"))
    share = null_rows.routed_share(ffn, 0.75)
    assert share == pytest.approx(0.6)
    torch.manual_seed(0)
    vanilla, own = null_rows.sides(ffn, 16, 8, torch.randn(1, 240, 16), [share])
    assert sum(vanilla.rows) == 480 and sum(own.rows) == pytest.approx(0.6 * 480, abs=2)
    assert vanilla.layer.pool.null.count == 0 and own.layer.pool.null.count == 4
    own_up, up = own.layer.experts.gate_up, vanilla.layer.experts.gate_up
    assert torch.equal(own_up, up)  # type: ignore[arg-type]
    assert dict(own.layer.router.named_parameters())["gate.map"].shape == (12, 12)  # a layer that has one before it


@pytest.mark.parametrize("work", ["train", "forward"])
def test_the_gain_stands_beside_the_promise(work: str) -> None:
    check = parse(NullRowsPaySpec, {"tau": 0.25, "work": work, **TINY})
    assert isinstance(check, NullRowsPaySpec)
    found = check.check(find_entry("moe-plus-plus"))
    assert found.figure > 0 and found.expected.startswith("at least 3.0")
    assert work in found.note and "D 16, F 8, 240 tokens" in found.note


def test_what_has_no_null_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="no MoE layer with null experts"):
        NullRowsPaySpec(tau=0.5).check(find_entry("top2-lm"))


@pytest.mark.parametrize("keys", [{"tau": 0.0}, {"tau": 1.5}, {"tau": 0.5, "rounds": 0}])
def test_impossible_settings_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(keys)[-1]):
        NullRowsPaySpec(**keys)
