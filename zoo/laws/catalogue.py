"""The cases over the registry: one per part and variant, and random combinations.

A part is covered by being registered; what a spec refuses is kept with its reason.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from zoo import registry
from zoo.laws.cases import Case, Refused, layer_case, surgery_case, trunk_case
from zoo.laws.draws import LISTS, SOCKETS, crossings, described, random_layers, random_trunks
from zoo.laws.examples import BASE, DENSE, SURGERIES, variants
from zoo.spec import Plain

RICH: Plain = {
    "null_experts": {"zero": 1, "copy": 1, "constant": 2},
    "shared": {"count": 2, "hidden": 4, "gate": "router"},
}
"""Null experts of every kind, and shared experts that the router weighs."""


def _placed(kind: str, part: Plain) -> Plain:
    """A part as the keys of a layer it takes."""
    plain: Plain = {SOCKETS[kind]: [part] if kind in LISTS else part}
    if getattr(registry.get(kind, part["type"]), "needs_bias", False):
        plain["router"] = {**BASE["router"], "bias": True}
    return plain


def _part_cases(kind: str, name: str) -> Iterator[Case]:
    for label, part in described(kind, name):
        yield layer_case(f"{kind} {label}", _placed(kind, part), {name})
        if kind in ("router", "policy") or label != name:
            yield layer_case(f"{kind} {label} rich", {**_placed(kind, part), **RICH}, {name})


def _pool_cases() -> Iterator[Case]:
    for null in ("zero", "copy", "constant"):
        yield layer_case(f"null {null}", {"null_experts": {null: 2}}, {"moe"})
    for gate in ("none", "sigmoid", "router"):
        yield layer_case(f"shared {gate}", {"shared": {"count": 2, "hidden": 4, "gate": gate}}, {"moe"})
    yield layer_case("biased", {"out_bias": True}, {"moe"})
    yield layer_case("reference", {"backend": "reference", **RICH}, {"moe"})
    for count in ("slots", "tokens", "first"):
        rule = {"type": "switch", "scope": "global_exact", "count": count}
        varied = {"router": {"type": "top_p"}, "balance": [rule], **RICH}
        yield layer_case(f"varied k, {count}", varied, {"moe", "switch", "top_p"})
    yield layer_case("one expert", {"routed": 1, "router": {"type": "top_k", "k": 1}}, {"moe"})
    yield layer_case("every expert", {"router": {"type": "top_k", "k": 4}}, {"moe"})


def _gate_cases() -> Iterator[Case]:
    """Every gate under top-k in a layer, plain and rich, and in a trunk of two."""
    for name in registry.names("gate"):
        for label, gate in described("gate", name):
            keys = {"router": {**BASE["router"], "gate": gate}}
            yield layer_case(f"gate {label}", keys, {name})
            yield layer_case(f"gate {label} rich", {**keys, **RICH}, {name})
            block = {"type": "sequential", "attention": {"heads": 2}, "ffn": {**BASE["ffn"], **RICH, **keys}}
            yield trunk_case(f"trunk gate {label}", {"layers": [{"repeat": 2, "block": block}]}, {name})


def _unusable(kind: str) -> Iterator[Case]:
    """Parts of a kind that cannot be imported or described, with the reason."""
    for name in registry.names(kind):
        try:
            list(variants(kind, name))
        except (ValueError, ImportError, AttributeError) as error:
            yield Refused(f"{kind} {name}", f"{type(error).__name__}: {error}", about=frozenset({name}))


def _trunk_cases() -> Iterator[Case]:
    moe = {**BASE["ffn"], **RICH}
    attention: Plain = {"heads": 2}
    for name in registry.names("block"):
        for label, block in described("block", name):
            block = block | {key: moe for key in ("ffn", "moe") if key in block}
            cond = 3 if registry.get("block", name).conditioned else 0
            yield trunk_case(f"block {label}", {"cond": cond, "layers": [{"repeat": 2, "block": block}]}, {name})
    plain: Plain = {"type": "sequential", "attention": attention}
    for name in registry.names("ffn"):
        for label, ffn in described("ffn", name):
            yield trunk_case(f"ffn {label}", {"layers": [{"repeat": 2, "block": {**plain, "ffn": ffn}}]}, {name})
    for name in registry.names("router"):
        for label, router in described("router", name):
            yield _routed_trunk(f"trunk router {label}", {**plain, "ffn": {**moe, "router": router}}, name)
    for name in registry.names("policy"):
        for label, policy in described("policy", name)[:1]:
            block = {**plain, "ffn": {**moe, "policy": [policy]}}
            yield trunk_case(f"trunk policy {label}", {"layers": [{"repeat": 2, "block": block}]}, {name})
    for name in registry.names("attention"):
        for label, part in described("attention", name):
            block = {**plain, "attention": part, "ffn": BASE["ffn"]}
            yield trunk_case(f"attention {label}", {"layers": [{"repeat": 2, "block": block}]}, {name})
    for name in registry.names("adapter"):
        for label, adapter in described("adapter", name):
            layers = [{"repeat": 2, "block": {**plain, "ffn": ffn}} for ffn in (DENSE, moe)]
            yield trunk_case(f"adapter {label}", {"layers": layers, "adapter": {**adapter, "freeze": False}}, {name})
    yield trunk_case("windows in turn", {"layers": [_windowed(2), _windowed(None), _windowed(4)]}, {"grouped_query"})
    for label, rope, about in _ropes():
        block = {**plain, "ffn": BASE["ffn"], "attention": {**attention, "head_dim": rope.pop("head_dim", None)}}
        yield trunk_case(f"rope {label}", {"layers": [{"repeat": 2, "block": block}], "rope": rope}, about)


def _routed_trunk(label: str, block: Plain, name: str) -> Case:
    """A trunk of two blocks, without null and shared experts where its router refuses them."""
    case = trunk_case(label, {"layers": [{"repeat": 2, "block": block}]}, {name})
    if isinstance(case, Refused):
        ffn = {key: value for key, value in block["ffn"].items() if key not in RICH}
        case = trunk_case(label, {"layers": [{"repeat": 2, "block": {**block, "ffn": ffn}}]}, {name})
    return case


def _surgery_cases() -> Iterator[Case]:
    for name in registry.names("surgery"):
        keys, change = SURGERIES.get(name, ({}, {}))
        for label, plain in described("surgery", name):
            yield surgery_case(f"surgery {label}", {**plain, **keys}, change, {name})


def _windowed(window: int | None) -> Plain:
    return {"block": {"type": "sequential", "attention": {"heads": 2, "window": window}, "ffn": BASE["ffn"]}}


def _ropes() -> Iterator[tuple[str, Plain, set[str]]]:
    """(label, rope and where it matters the head size, the types it is about)."""
    sections: Plain = {"axes": 2, "layout": "sections", "sections": [3, 1]}
    yield "two axes", {"axes": 2, "head_dim": 8}, {"sequential"}
    yield "sections", {**sections, "head_dim": 8}, {"sequential"}
    yield "adjacent", {**sections, "pairs": "adjacent", "head_dim": 8}, {"sequential"}
    for name in registry.names("rope_scaling"):
        for label, scaling in described("rope_scaling", name):
            yield label, {"scaling": scaling}, {name}


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Every case over the registry as it stands at the first call, refused ones included."""
    return tuple(gather())


def gather() -> Iterator[Case]:
    """Every case over the registry as it stands."""
    for kind in (*SOCKETS, "gate", "ffn", "attention", "rope_scaling", "block", "adapter", "surgery"):
        yield from _unusable(kind)
    for kind in SOCKETS:
        for name in registry.names(kind):
            yield from _part_cases(kind, name)
    yield from _gate_cases()
    yield from _pool_cases()
    yield from _trunk_cases()
    yield from _surgery_cases()
    yield from crossings()
    yield from random_layers(24)
    yield from random_trunks(16)
