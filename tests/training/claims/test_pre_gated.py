"""Claims about a pre-gate that learned from the gates of a trained model."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from training.claims.pre_gated import CacheHitsSpec, DistilledBetterSpec, FewerExpertsSpec
from zoo.claims import Finding
from zoo.hub.entries import Entry, read_entry
from zoo.spec import parse

GATES = {"backbone.layers.0.block.ffn.router": {"gate": {"type": "linear"}, "k": 1, "normalize": "all"}}


@pytest.fixture(scope="module")
def pre_gated(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """An entry whose layers are pre-gated."""
    gate = {"type": "pre_gated", "vocab": 259, "init_std": 0.5}
    router = {"type": "top_k", "k": 1, "allow_constant": True, "gate": gate}
    ffn = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": router}
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    spec = {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {"text": {"type": "text", "length": 32}},
    }
    path = tmp_path_factory.mktemp("entry") / "pre-gated.yaml"
    path.write_text(yaml.safe_dump({"spec": spec}))
    return read_entry(path)


def checked(kind: Any, entry: Entry, budget: dict[str, Any], **keys: Any) -> Finding:
    stages = dict.fromkeys(("base", "distill", "train"), budget)
    found: Finding = parse(kind, {"gates": GATES, **stages, **keys}).check(entry, progress=False)
    return found


def test_the_taught_pre_gate_beside_one_as_it_was_drawn(pre_gated: Entry, budget: dict[str, Any]) -> None:
    found = checked(DistilledBetterSpec, pre_gated, budget)
    assert found.figure != 0 and "under a drawn one" in found.note
    stages = dict.fromkeys(("base", "distill", "train"), budget)
    claim = parse(DistilledBetterSpec, {"gates": GATES, **stages})
    taught, drawn = (claim.tuned(pre_gated, which, 0, False).model for which in (True, False))
    assert taught.spec == drawn.spec
    assert claim.routes(claim.tuned(pre_gated, True, 0, False), 4) != claim.routes(
        claim.tuned(pre_gated, False, 0, False), 4
    )


def test_batches_and_caches_that_know_what_comes(pre_gated: Entry, budget: dict[str, Any]) -> None:
    found = checked(FewerExpertsSpec, pre_gated, budget, requests=4, size=8, at_most=1.0)
    assert 0 < found.figure <= 1 and found.holds
    assert not checked(FewerExpertsSpec, pre_gated, budget, requests=4, size=8, at_most=0.0).holds
    found = checked(CacheHitsSpec, pre_gated, budget, requests=4, size=2, capacity=2)
    assert found.holds and 0 <= found.figure < 1 and "belady" in found.note
