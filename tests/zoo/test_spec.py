"""Specs from plain mappings: parsing, defaults, errors with path and near miss, writing, overriding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from zoo.backbone.trunk import BackboneSpec
from zoo.moe.feed_forward import DenseSpec, FeedForwardSpec
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.spec import MoESpec
from zoo.spec import Cost, Plain, SpecError, dump, linear_cost, override, parse, read_yaml

TRUNK = """
dim: 16
cond: 4
rope: {axes: 2}
layers:
  - repeat: 2
    block:
      type: sequential
      attention: {heads: 4, kv_heads: 2}
      ffn: {type: dense, hidden: 32}
  - block:
      type: adaln
      attention: {heads: 4}
      ffn:
        type: moe
        routed: 4
        experts: {type: swiglu, hidden: 8}
        router: {type: top_p, p: 0.6, gate: {jitter: 1e-2}}
        null_experts: {zero: 1}
        shared: {count: 2, hidden: 4, gate: router}
        policy: []
        balance:
          - {type: switch, weight: 0.02, final: 0.001, anneal: 100}
          - {type: z_loss}
"""


def trunk() -> Plain:
    return yaml.safe_load(TRUNK)


def moe(**changes: Any) -> Plain:
    """A small layer with keys exchanged by dotted path, `__` for the dot."""
    base = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": {"type": "top_k"}}
    return override(base, {k.replace("__", "."): v for k, v in changes.items()})


def test_parsing_fills_defaults_and_picks_classes_by_type() -> None:
    spec = parse(BackboneSpec, trunk())
    dense, adaln = (layers.block for layers in spec.layers)
    assert dense.ffn == DenseSpec(hidden=32)
    layer = adaln.ffn
    assert isinstance(layer, MoESpec)
    assert layer.router.p == 0.6 and layer.router.gate.jitter == 0.01
    assert layer.backend == "fused" and spec.norm_eps == 1e-6
    assert layer.pool.experts == 5 and layer.pool.columns == 7


def test_what_is_dumped_is_parsed_to_an_equal_spec_also_through_yaml() -> None:
    spec = parse(BackboneSpec, trunk())
    plain = dump(spec)
    assert parse(BackboneSpec, plain) == spec
    assert parse(BackboneSpec, yaml.safe_load(yaml.safe_dump(plain))) == spec
    assert plain["layers"][1]["block"]["ffn"]["router"]["type"] == "top_p"
    assert plain["layers"][1]["repeat"] == 1  # defaults are written out
    assert hash(spec) == hash(parse(BackboneSpec, plain))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # unknown keys and values, the near miss named
        ({"router__kk": 2}, r"^router: unknown key 'kk' \(did you mean 'k'\?\)"),
        ({"routd": 4}, r"^spec: unknown key 'routd' \(did you mean 'routed'\?\)"),
        ({"router__type": "topk"}, r"^router\.type: no router 'topk' \(did you mean 'top_k'\?\)"),
        ({"router__score": "softmx"}, r"^router\.score: got 'softmx'.*\(did you mean 'softmax'\?\)"),
        ({"type": "mo"}, r"^type: no ffn 'mo' \(did you mean 'moe'\?\)"),
        ({"backend": "groupd"}, r"^backend: got 'groupd'.*did you mean 'grouped'"),
        # wrong types
        ({"routed": "four"}, r"^routed: expected int, got str"),
        ({"routed": 4.0}, r"^routed: expected int, got float"),
        ({"routed": True}, r"^routed: expected int, got bool"),
        ({"router": 3}, r"^router: expected a mapping, got int"),
        ({"policy": {"type": "capacity"}}, r"^policy: expected a list, got dict"),
        ({"router__gate": {"jitter": float("inf")}}, r"^router\.gate\.jitter: got inf, expected a finite number"),
        ({"router__gate": {"jitter": "1e999"}}, r"^router\.gate\.jitter: got inf, expected a finite number"),
        ({"router__gate": {"jitter": float("nan")}}, r"^router\.gate\.jitter: got nan"),
        ({"experts": {"type": "gelu"}}, r"^experts\.hidden: missing; it has no default"),
        # impossible combinations
        ({"router__k": 9}, r"^router\.k: got 9, expected at most 4"),
        ({"router__k": 0}, r"^router\.k: got 0, expected 1 or more"),
        ({"router__k": 1}, r"^router\.normalize: with k = 1 .*never reaches the router"),
        ({"router": {"type": "top_p", "p": 0.0}}, r"^router\.p: got 0\.0, expected 0 < p <= 1"),
        ({"router": {"type": "top_p", "p": 1.2}}, r"^router\.p: got 1\.2, expected 0 < p <= 1"),
        ({"router": {"type": "top_p", "max_k": 6}}, r"^router\.max_k: got 6, expected at most 4"),
        ({"router": {"type": "top_p", "min_k": 3, "max_k": 2}}, r"^router\.max_k: got 2, expected at least min_k = 3"),
        ({"router": {"type": "top_p", "combine": "uniform"}}, r"^router\.combine: .*never reaches the router"),
        ({"router": {"type": "top_p", "normalize": "all", "combine": "uniform"}}, r"^router\.normalize: 'all' needs"),
        ({"routed": 0, "null_experts": {"zero": 2}}, r"^routed: got 0, expected 1 or more \(null experts alone"),
        ({"null_experts": {"copy": -1}}, r"^null_experts\.copy: got -1, expected 0 or more"),
        ({"router__groups": 3}, r"^router\.groups: 4 experts do not divide into 3 equal groups"),
        ({"router__groups": 0}, r"^router\.groups: got 0, expected 1 or more"),
        ({"router__groups": 4}, r"^router\.top_groups: 1 groups of 1 experts hold fewer than k = 2"),
        ({"router__top_groups": 2}, r"^router\.top_groups: got 2, expected 1\.\.1"),
        ({"router__normalize": "none"}, r"^router\.normalize: softmax scores have no unnormalised form"),
        ({"router__gate": {"jitter": 1.0}}, r"^router\.gate\.jitter: got 1\.0, expected 0 <= jitter < 1"),
        ({"experts__hidden": 0}, r"^experts\.hidden: got 0, expected 1 or more"),
        ({"shared": {"count": 0, "hidden": 4}}, r"^shared\.count: got 0, expected 1 or more"),
        ({"policy": [{"type": "capacity"}]}, r"^policy\[0\]: lets later tokens matter; set allow_future: true"),
        ({"policy": [{"type": "capacity", "factor": 0.0}]}, r"^policy\[0\]\.factor: got 0\.0, expected more than 0"),
        ({"balance": [{"type": "bias"}]}, r"^router\.bias: must be true, balance\[0\] updates the selection bias"),
        ({"balance": [{"type": "switch", "weight": -1.0}]}, r"^balance\[0\]\.weight: got -1\.0"),
        ({"balance": [{"type": "switch", "final": 0.1}]}, r"^balance\[0\]\.anneal: got 0 with final 0\.1"),
        ({"balance": [{"type": "switch", "groups": 3}]}, r"^balance\[0\]\.groups: 4 experts do not divide into 3"),
        ({"balance": [{"type": "switch", "groups": 0}]}, r"^balance\[0\]\.groups: got 0, expected 1 or more"),
        ({"balance": [{"type": "switch", "scope": "globl"}]}, r"^balance\[0\]\.scope: .*did you mean 'global'"),
    ],
)
def test_a_layer_that_cannot_be_built_names_path_and_way_out(changes: Plain, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(FeedForwardSpec, moe(**changes))


BLOCK = "layers.0.block."


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (BLOCK + "attention.heads", 3, r"^layers\[0\]\.block\.attention\.kv_heads: 3 query heads do not divide over 2"),
        (BLOCK + "attention.heads", 0, r"^layers\[0\]\.block\.attention\.heads: got 0, expected 1 or more"),
        (BLOCK + "attention.kv_heads", 0, r"^layers\[0\]\.block\.attention\.kv_heads: got 0, expected 1 or more"),
        (BLOCK + "attention.head_dim", -2, r"^layers\[0\]\.block\.attention\.head_dim: got -2, expected 1 or more"),
        (BLOCK + "attention.head_dim", 5, r"^layers\[0\]\.block\.attention\.head_dim: got 5, expected an even number"),
        ("dim", 18, r"^layers\[0\]\.block\.attention\.heads: width 18 does not divide into 4 heads; set head_dim"),
        ("dim", 0, r"^dim: got 0, expected 1 or more"),
        ("cond", 0, r"^layers\[1\]\.block\.type: an adaln block needs backbone\.cond"),
        ("cond", -1, r"^cond: got -1, expected 0 or more"),
        (
            "layers.1.block",
            {"type": "sequential", "attention": {"heads": 4}, "ffn": {"type": "dense", "hidden": 8}},
            r"^cond: got 4, but no block reads the conditioning; expected 0, or a conditioned block in layers",
        ),
        ("layers", [], r"^layers: got none, expected at least one"),
        ("layers.0.repeat", 0, r"^layers\[0\]\.repeat: got 0, expected 1\.\.65536"),
        ("rope", {"axes": 0}, r"^rope\.axes: got 0, expected 1 or more"),
        ("rope", {"theta": 1.0}, r"^rope\.theta: got 1\.0, expected more than 1"),
        ("rope.layout", "sections", r"^rope\.sections: got 0 of them, expected one per axis \(2\)"),
        ("rope", {"axes": 2, "layout": "sections", "sections": [2, 2]}, r"^rope\.sections: sum to 4, expected 2"),
        ("layers.1.block.ffn.router.p", 2.0, r"^layers\[1\]\.block\.ffn\.router\.p: got 2\.0"),
        ("layers.1.block.typ", "x", r"^layers\[1\]\.block: unknown key 'typ' \(did you mean 'type'|unknown key 'typ'"),
    ],
)
def test_a_trunk_that_cannot_be_built_names_path_and_way_out(path: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(BackboneSpec, override(trunk(), {path: value}))


def test_override_exchanges_by_dotted_path_and_leaves_the_original_alone() -> None:
    before = trunk()
    changed = override(before, {"dim": 32, "layers.0.repeat": 5, "layers.1.block.ffn.router": {"p": 0.9}})
    assert before == trunk()
    assert changed["dim"] == 32 and changed["layers"][0]["repeat"] == 5
    assert changed["layers"][1]["block"]["ffn"]["router"] == {"type": "top_p", "p": 0.9, "gate": {"jitter": "1e-2"}}


def test_override_reaches_into_a_part_left_to_its_default() -> None:
    router = "layers.1.block.ffn.router"
    plain = override(trunk(), {router: {"type": "top_k", "k": 3}})
    with pytest.raises(SpecError, match="no key 'gate'"):
        override(plain, {f"{router}.gate.jitter": 0.1})
    changed = override(plain, {f"{router}.gate.jitter": 0.1, "rope.theta": 5.0}, BackboneSpec)
    assert changed["layers"][1]["block"]["ffn"]["router"]["gate"]["jitter"] == 0.1
    assert parse(BackboneSpec, changed).layers[1].block.ffn.router.gate.jitter == 0.1
    for path, message in ((f"{router}.gat.jitter", "no key 'gat'"), (f"{router}.gate.no.jitter", "no key 'no'")):
        with pytest.raises(SpecError, match=message):
            override(plain, {path: 0.1}, BackboneSpec)


def test_override_with_another_type_replaces_the_part() -> None:
    changed = override(trunk(), {"layers.1.block.ffn.router": {"type": "top_k", "k": 3}})
    assert changed["layers"][1]["block"]["ffn"]["router"] == {"type": "top_k", "k": 3}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("layrs.0.repeat", r"no key 'layrs' \(did you mean 'layers'\?\)"),
        ("layers.7.repeat", r"'7' is no index of a list of 2"),
        ("layers.x.repeat", r"'x' is no index"),
        ("dim.size", r"'size' lies below a plain value \(16\)"),
    ],
)
def test_override_through_nothing_names_the_near_miss(path: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        override(trunk(), {path: 1})


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Every kind of field."""

    pair: tuple[int, float] = (1, 2.0)
    sizes: dict[str, int] | None = None
    name: str = "a"
    mode: Literal["x", 2] = "x"
    rate: float = 1.0


def test_fields_of_every_kind() -> None:
    spec = parse(Sample, {"pair": [3, 4], "sizes": {"a": 1}, "mode": 2, "rate": "1e-3"})
    assert spec == Sample(pair=(3, 4.0), sizes={"a": 1}, mode=2, rate=1e-3)
    assert dump(spec) == {"pair": [3, 4.0], "sizes": {"a": 1}, "name": "a", "mode": 2, "rate": 1e-3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"pair": [1]}, r"^pair: expected 2 values, got 1"),
        ({"pair": [1, "x"]}, r"^pair\[1\]: expected float, got str"),
        ({"sizes": [1]}, r"^sizes: expected a mapping, got list"),
        ({"sizes": {"a": "b"}}, r"^sizes\.a: expected int, got str"),
        ({"mode": 3}, r"^mode: got 3, expected one of 'x', 2"),
        ({"name": None}, r"^name: expected str, got NoneType"),
        ({1: 2}, r"^spec: unknown key 1"),
        ([], r"^Sample: expected a mapping, got list"),
    ],
)
def test_fields_of_the_wrong_kind(value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(Sample, value, "")


def test_a_socket_without_a_type_lists_the_types() -> None:
    with pytest.raises(SpecError, match=r"^router\.type: missing; expected one of .*top_k.*top_p"):
        parse(FeedForwardSpec, moe() | {"router": {"k": 2}})


def test_a_spec_given_as_an_object_is_kept() -> None:
    router = TopKSpec(k=3)
    spec = parse(FeedForwardSpec, moe() | {"router": router})
    assert spec.router is router


def test_yaml_errors_name_the_file(tmp_path: Path) -> None:
    bad, flat, missing = tmp_path / "bad.yaml", tmp_path / "flat.yaml", tmp_path / "none.yaml"
    bad.write_text("a: [1, 2\nb: 3\n", encoding="utf-8")
    flat.write_text("- 1\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"(?s)bad\.yaml: not readable as YAML: .*line 2"):
        read_yaml(bad)
    with pytest.raises(SpecError, match=r"flat\.yaml: expected a mapping at the top, got list"):
        read_yaml(flat)
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        read_yaml(missing)


def test_costs_add() -> None:
    assert linear_cost(3, 5, bias=True) == Cost(20, 20, 30)
    assert linear_cost(3, 5) + Cost(1, 2, 3) == Cost(16, 17, 33)
    assert Cost(1, 2, 3).times(4) == Cost(4, 8, 12)
