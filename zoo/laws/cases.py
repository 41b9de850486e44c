"""The cases laws are run over: small layers and trunks, one per part and variant, and random combinations.

Cases come from the registry, so a part is covered by being registered; what a spec refuses is kept with its reason.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modalities.base import Tokens
from zoo import registry
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.laws.examples import BASE, variants
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.layer import MoE
from zoo.moe.pool import Properties
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import Plain, SpecError, parse

DIM = 8
RICH: Plain = {
    "null_experts": {"zero": 1, "copy": 1, "constant": 2},
    "shared": {"count": 2, "hidden": 4, "gate": "router"},
}
"""Null experts of every kind, and shared experts that the router weighs."""


@dataclass(frozen=True)
class Case:
    """name and seed of a case; `about` holds the types of the parts it is there for."""

    name: str
    about: frozenset[str] = field(default=frozenset(), kw_only=True)
    seed: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class LayerCase(Case):
    """One MoE layer."""

    spec: MoESpec

    @property
    def properties(self) -> Properties:
        """What the layer declares."""
        return self.spec.properties()

    def layer(self, spec: MoESpec | None = None, dtype: torch.dtype = torch.float64) -> MoE:
        """The layer (of another spec where given), every parameter drawn from the case's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layer = MoE(spec or self.spec, DIM)
        draw_(layer, self.seed)
        return layer.to(dtype).eval()

    def tokens(self, rows: int = 3, length: int = 5, dtype: torch.dtype = torch.float64) -> Tokens:
        """Random tokens with every field a part may look at; all real."""
        return make_tokens(rows, length, DIM, self.seed + 1, dtype)


@dataclass(frozen=True)
class TrunkCase(Case):
    """One trunk of two blocks or more."""

    spec: BackboneSpec

    @property
    def properties(self) -> Properties:
        """What the layers declare together; a trunk of dense layers promises everything."""
        specs = [layer.spec for layer in self.trunk().moe_layers()]
        return specs[0].properties() if specs else Properties()

    def trunk(self, spec: BackboneSpec | None = None, dtype: torch.dtype = torch.float64) -> Backbone:
        """The trunk (of another spec where given), every parameter drawn from the case's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            trunk = (spec or self.spec).build()
        draw_(trunk, self.seed)
        return trunk.to(dtype).eval()

    def tokens(self, rows: int = 2, length: int = 7, dtype: torch.dtype = torch.float64) -> Tokens:
        """Random tokens in two documents per row, with the conditioning the trunk asks for."""
        tokens = make_tokens(rows, length, self.spec.dim, self.seed + 1, dtype)
        generator = torch.Generator().manual_seed(self.seed + 2)
        axes = self.spec.rope.axes
        position = torch.arange(length).view(1, length, 1) * (1 + torch.arange(axes))
        cond = torch.randn(rows, self.spec.cond, generator=generator, dtype=dtype) if self.spec.cond else None
        return tokens.replace(position=position.expand(rows, -1, -1), cond=cond)


@dataclass(frozen=True)
class Refused(Case):
    """A combination that its spec refuses, with the reason."""

    reason: str


def make_tokens(rows: int, length: int, dim: int, seed: int, dtype: torch.dtype) -> Tokens:
    """Tokens [rows, length] without padding, two documents per row."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(length).expand(rows, -1)
    return Tokens(
        embedding=torch.randn(rows, length, dim, generator=generator, dtype=torch.float64).to(dtype),
        mask=torch.ones(rows, length, dtype=torch.bool),
        position=index[..., None].contiguous(),
        modality=torch.zeros(rows, length, dtype=torch.int64),
        document=(index >= (length + 1) // 2).long(),
        ids=torch.randint(0, 50, (rows, length), generator=generator),
    )


def draw_(module: nn.Module, seed: int) -> None:
    """Draws every parameter and selection bias anew, those that start at zero too, so that nothing hides behind them;
    router logits are spread, so that nothing is nearly tied."""
    generator = torch.Generator().manual_seed(seed + 7)
    routers = {id(p) for m in module.modules() if isinstance(m, MoE) for p in m.router.parameters()}
    with torch.no_grad():
        for parameter in module.parameters():
            spread = 0.5 if id(parameter) in routers else parameter.shape[-1] ** -0.5
            offset = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(offset + spread * noise)
        for layer in (m for m in module.modules() if isinstance(m, MoE)):
            if layer.router.bias is not None:
                noise = torch.randn(layer.router.bias.shape, generator=generator)
                layer.router.bias.copy_(0.05 * noise)


def context(tokens: Tokens, **more: Any) -> RoutingContext:
    """The routing context of tokens, optimiser step 0."""
    return RoutingContext.of(tokens, step=torch.tensor(0), **more)


def flat(tokens: Tokens) -> Tensor:
    """[T, D]."""
    return tokens.embedding.flatten(0, 1)


def layer_case(name: str, plain: Plain, about: set[str], seed: int = 0) -> LayerCase | Refused:
    """A case of a layer given as changes of the base layer."""
    try:
        spec = parse(FeedForwardSpec, {**BASE["ffn"], **plain})
    except SpecError as error:
        return Refused(name, str(error), about=frozenset(about), seed=seed)
    assert isinstance(spec, MoESpec)
    return LayerCase(name, spec, about=frozenset(about), seed=seed)


def trunk_case(name: str, plain: Plain, about: set[str]) -> TrunkCase | Refused:
    """A case of a trunk of width 8; `plain` holds layers and what else differs."""
    try:
        return TrunkCase(name, parse(BackboneSpec, {"dim": DIM, **plain}), about=frozenset(about))
    except SpecError as error:
        return Refused(name, str(error), about=frozenset(about))


SOCKETS = {"router": "router", "policy": "policy", "expert": "experts", "balance": "balance", "dispatch": "dispatch"}
LISTS = {"policy", "balance"}


def _placed(kind: str, part: Plain) -> Plain:
    """A part as the keys of a layer it takes."""
    plain: Plain = {SOCKETS[kind]: [part] if kind in LISTS else part}
    if getattr(registry.get(kind, part["type"]), "needs_bias", False):
        plain["router"] = {**BASE["router"], "bias": True}
    return plain


def _part_cases(kind: str, name: str) -> Iterator[Case]:
    try:
        descriptions = list(variants(kind, name))
    except ValueError as error:
        yield Refused(f"{kind} {name}", str(error), about=frozenset({name}))
        return
    for label, part in descriptions:
        yield layer_case(f"{kind} {label}", _placed(kind, part), {name})
        if kind in ("router", "policy") or part != descriptions[0][1]:
            yield layer_case(f"{kind} {label} rich", {**_placed(kind, part), **RICH}, {name})


def _pool_cases() -> Iterator[Case]:
    for null in ("zero", "copy", "constant"):
        yield layer_case(f"null {null}", {"null_experts": {null: 2}}, {"moe"})
    for gate in ("none", "sigmoid", "router"):
        yield layer_case(f"shared {gate}", {"shared": {"count": 2, "hidden": 4, "gate": gate}}, {"moe"})
    yield layer_case("reference", {"backend": "reference", **RICH}, {"moe"})
    for count in ("slots", "tokens", "first"):
        rule = {"type": "switch", "scope": "global_exact", "count": count}
        varied = {"router": {"type": "top_p"}, "balance": [rule], **RICH}
        yield layer_case(f"varied k, {count}", varied, {"moe", "switch", "top_p"})
    yield layer_case("one expert", {"routed": 1, "router": {"type": "top_k", "k": 1}}, {"moe"})
    yield layer_case("every expert", {"router": {"type": "top_k", "k": 4}}, {"moe"})


def _random_cases(count: int) -> Iterator[Case]:
    """Combinations drawn over all parts, the same at every call."""
    draw = random.Random(20)
    parts = {
        kind: [(label, part) for name in registry.names(kind) for label, part in _safe_variants(kind, name)]
        for kind in SOCKETS
    }
    for seed in range(count):
        plain: Plain = {"routed": draw.choice([2, 4, 6]), "backend": draw.choice(["grouped", "reference"])}
        about, labels = set(), []
        for kind, socket in SOCKETS.items():
            if kind in LISTS and draw.random() < 0.4:
                continue
            label, part = draw.choice(parts[kind])
            plain[socket] = [part] if kind in LISTS else part
            about.add(part["type"])
            labels.append(label)
        plain |= {key: value for key, value in RICH.items() if draw.random() < 0.6}
        yield layer_case(f"random {seed}: {' '.join(labels)}", plain, about, seed)


def _safe_variants(kind: str, name: str) -> list[tuple[str, Plain]]:
    try:
        return list(variants(kind, name))
    except ValueError:
        return []


def _trunk_cases() -> Iterator[Case]:
    moe = {**BASE["ffn"], **RICH}
    attention: Plain = {"heads": 2}
    for name in registry.names("block"):
        for label, block in variants("block", name):
            block = {**block, "ffn": moe} if "ffn" in block else block
            yield trunk_case(f"block {label}", {"cond": 3, "layers": [{"repeat": 2, "block": block}]}, {name})
    plain: Plain = {"type": "sequential", "attention": attention}
    for name in registry.names("ffn"):
        for label, ffn in variants("ffn", name):
            yield trunk_case(f"ffn {label}", {"layers": [{"repeat": 2, "block": {**plain, "ffn": ffn}}]}, {name})
    for name in registry.names("router"):
        for label, router in _safe_variants("router", name):
            block = {**plain, "ffn": {**moe, "router": router}}
            yield trunk_case(f"trunk router {label}", {"layers": [{"repeat": 2, "block": block}]}, {name})
    for name in registry.names("policy"):
        for label, policy in _safe_variants("policy", name)[:1]:
            block = {**plain, "ffn": {**moe, "policy": [policy]}}
            yield trunk_case(f"trunk policy {label}", {"layers": [{"repeat": 2, "block": block}]}, {name})
    for label, change, more in _attention_variants():
        block = {"type": "sequential", "attention": {**attention, **change}, "ffn": moe}
        yield trunk_case(f"attention {label}", {"layers": [{"repeat": 2, "block": block}], **more}, {"sequential"})


def _attention_variants() -> list[tuple[str, Plain, Plain]]:
    return [
        ("grouped", {"heads": 4, "kv_heads": 2}, {}),
        ("normed", {"qk_norm": True, "bias": True, "out_bias": True, "head_dim": 6}, {}),
        ("two axes", {"head_dim": 8}, {"rope": {"axes": 2}}),
        ("sections", {"head_dim": 8}, {"rope": {"axes": 2, "layout": "sections", "sections": [3, 1]}}),
    ]


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Every case over the registry as it stands at the first call, refused ones included."""
    return tuple(gather())


def gather() -> Iterator[Case]:
    """Every case over the registry as it stands."""
    for kind in SOCKETS:
        for name in registry.names(kind):
            yield from _part_cases(kind, name)
    yield from _pool_cases()
    yield from _trunk_cases()
    yield from _random_cases(24)
