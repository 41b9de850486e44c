"""Running laws by part, reporting them, and parts that other packages bring."""

from __future__ import annotations

import sys
import types
from importlib import metadata

import pytest

from zoo import laws, registry
from zoo.laws.cases import Refused, TrunkCase, layer_case
from zoo.laws.catalogue import gather
from zoo.laws.examples import fill, variants
from zoo.laws.suite import Result
from zoo.moe.routers.top_k import TopKRouter, TopKSpec
from zoo.moe.routing import Routing


class ForeignSpec(TopKSpec):
    """A router of another package, which forgets that padding holds no slot."""

    def build(self, dim, pool):
        return ForeignRouter(self, dim, pool)


class ForeignRouter(TopKRouter):
    """See ForeignSpec."""

    def forward(self, x, ctx) -> Routing:
        return super().forward(x, ctx.replace(mask=ctx.mask | True))


def install(monkeypatch: pytest.MonkeyPatch, point: metadata.EntryPoint) -> None:
    """Lets the registry, and nobody else in the process, find this entry point."""
    monkeypatch.setattr(registry, "metadata", types.SimpleNamespace(entry_points=lambda group: [point]))
    registry._plugins.cache_clear()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    """A plug-in's entry point `router.foreign`."""
    module = types.ModuleType("foreign_parts")
    module.ForeignSpec = ForeignSpec
    monkeypatch.setitem(sys.modules, "foreign_parts", module)
    point = metadata.EntryPoint("router.foreign", "foreign_parts:ForeignSpec", registry.GROUP)
    install(monkeypatch, point)
    yield "foreign"
    registry._plugins.cache_clear()


def test_a_plug_in_is_under_the_laws(plugin: str) -> None:
    cases = [case for case in gather() if plugin in case.about]
    assert any(isinstance(case, TrunkCase) for case in cases) and len(cases) > 10
    alone = [case for case in cases if case.name == "router foreign"]
    broken = {r.law for r in laws.run(plugin, cases=alone) if r.outcome == "broken"}
    assert "padding.zero" in broken


def test_a_plug_in_that_cannot_be_imported_is_reported_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("block.gone", "no_such_package:Spec", registry.GROUP)
    install(monkeypatch, point)
    try:
        cases = list(gather())
    finally:
        registry._plugins.cache_clear()
    (gone,) = [case for case in cases if "gone" in case.about]
    assert isinstance(gone, Refused) and "no_such_package" in gone.reason
    assert len(cases) > 100


def test_run_takes_one_part() -> None:
    results = laws.run("z_loss")
    assert results and all(r.outcome in ("held", "refused") for r in results)
    assert {r.case for r in results} >= {"balance z_loss"}
    assert not any(r.case.startswith("router") for r in results)


def test_an_unknown_part_names_the_near_miss() -> None:
    with pytest.raises(registry.RegistryError, match=r"no part 'topk' \(did you mean 'top_k'\?\)"):
        laws.run("topk")


def test_report_tells_what_held_broke_and_was_refused() -> None:
    results = [
        Result("padding.others", "a", "held"),
        Result("padding.others", "b", "broken", "output: differs by 0.5"),
        Result("edges.few", "b", "error", "RuntimeError: no"),
        Result("spec", "c", "refused", "k: got 9"),
    ]
    text = laws.report(results)
    assert "padding.others     1       1" in text
    assert "output: differs by 0.5" in text and "RuntimeError: no" in text and "k: got 9" in text
    assert text.endswith("1 of 3 checks held over 3 cases")


def test_listing_names_every_law_once() -> None:
    lines = laws.listing().splitlines()
    assert [line.split()[0] for line in lines] == [law.name for law in laws.LAWS]
    assert all(len(line.split()) > 4 for line in lines)


def test_required_keys_are_filled_by_type() -> None:
    assert fill(registry.get("expert", "swiglu")) == {"hidden": 6}
    block = fill(registry.get("block", "sequential"))
    assert block["attention"] == {"type": "grouped_query", "heads": 2} and block["ffn"]["type"] == "moe"


def test_variants_change_one_key_at_a_time() -> None:
    found = dict(variants("policy", "capacity"))
    assert found["capacity(priority=position)"] == {"type": "capacity", "priority": "position"}
    assert found["capacity(null_too=True)"] == {"type": "capacity", "null_too": True}


def test_a_refused_combination_keeps_its_reason() -> None:
    case = layer_case("wrong", {"router": {"type": "top_k", "k": 9}}, set())
    assert isinstance(case, Refused)
    assert case.reason == "router.k: got 9, expected at most 4, the number of routed and null experts"
