"""Names to parts: near misses, clashes, plug-ins, and that every name leads somewhere."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Iterator
from importlib import metadata

import pytest

from zoo import registry
from zoo.moe.experts.ffn import SwiGLUSpec
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.routers.top_k import TopKSpec
from zoo.registry import RegistryError


@pytest.mark.parametrize("kind", registry.kinds())
def test_every_name_leads_to_a_frozen_spec_of_its_kind(kind: str) -> None:
    for name in registry.names(kind):
        cls = registry.get(kind, name)
        assert cls.kind == kind
        assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
        assert all(f.kw_only for f in dataclasses.fields(cls))
        assert cls.__doc__, f"{kind} {name} has no docstring"
        assert registry.is_registered(cls)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: registry.get("router", "top-k"), r"no router 'top-k' \(did you mean 'top_k'\?\); router types are"),
        (lambda: registry.get("router", "xyz"), r"no router 'xyz'; router types are .*top_k, top_p"),
        (lambda: registry.names("routr"), r"no kind 'routr' \(did you mean 'router'\?\)"),
        (lambda: registry.register("router", "top_k", "a:B"), r"router 'top_k' is already registered as zoo\.moe"),
        (lambda: registry.type_of(3), r"no kind 'None'"),
    ],
)
def test_unknown_and_clashing_names(call: object, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        call()


def test_types_of_specs() -> None:
    assert registry.type_of(SwiGLUSpec(hidden=2)) == "swiglu"
    assert not registry.is_registered(FeedForwardSpec)

    class Unknown(TopKSpec):
        pass

    with pytest.raises(RegistryError, match=r"Unknown is not registered under 'router'"):
        registry.type_of(Unknown())


def test_registering_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TABLE, "expert", dict(registry.TABLE["expert"]))
    registry.register("expert", "again", "zoo.moe.experts.ffn:GELUSpec")
    assert "again" in registry.names("expert")
    assert registry.get("expert", "again").__name__ == "GELUSpec"


def points(monkeypatch: pytest.MonkeyPatch, *named: tuple[str, str]) -> None:
    found = [metadata.EntryPoint(name, value, registry.GROUP) for name, value in named]
    own = types.SimpleNamespace(entry_points=lambda group: found if group == registry.GROUP else [])
    monkeypatch.setattr(registry, "metadata", own)
    registry._plugins.cache_clear()


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    yield
    registry._plugins.cache_clear()


def test_a_plug_in_is_found_imported_on_use_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, ("expert.mine", "my_experts:MineSpec"))
    assert "mine" in registry.names("expert")
    with pytest.raises(ModuleNotFoundError, match="my_experts"):
        registry.get("expert", "mine")

    class Mine(SwiGLUSpec):
        """A class that its package hands on from another module."""

    module = types.ModuleType("my_experts")
    module.MineSpec = Mine
    monkeypatch.setitem(sys.modules, "my_experts", module)
    assert registry.get("expert", "mine") is Mine
    assert registry.type_of(Mine(hidden=2)) == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", r"plug-in 'mine': expected 'kind\.type' with a kind of"),
        ("routr.mine", r"plug-in 'routr\.mine': expected 'kind\.type'"),
        ("router.top_k", r"plug-in 'router\.top_k' \(my:Spec\): the name is taken by another part"),
    ],
)
def test_a_plug_in_with_a_wrong_name(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    points(monkeypatch, (name, "my:Spec"))
    with pytest.raises(RegistryError, match=message):
        registry.names("router")
