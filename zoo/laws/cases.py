"""What laws are run over: small layers and trunks with seeded weights and tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modalities.base import Tokens
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.laws.examples import BASE
from zoo.models.unified import ModelSpec
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.layer import MoE
from zoo.moe.pool import Properties, weakest
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import Plain, SpecError, override, parse
from zoo.surgery.base import SurgerySpec

DIM = 8


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
        return weakest(Properties(), *(layer.spec.properties() for layer in self.trunk().moe_layers()))

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
class SurgeryCase(Case):
    """One surgery on `model`; all its sources are described by `source`."""

    spec: SurgerySpec
    model: ModelSpec
    source: ModelSpec


@dataclass(frozen=True)
class Refused(Case):
    """A combination that its spec refuses, with the reason."""

    reason: str


def surgery_case(name: str, plain: Plain, change: Plain, about: set[str]) -> SurgeryCase | Refused:
    """A case of a surgery on a small model; `change` says by dotted path what differs in its sources."""
    model: Plain = {
        "type": "unified",
        "backbone": {
            "dim": DIM,
            "layers": [{"block": {"type": "sequential", "attention": {"heads": 2}, "ffn": BASE["ffn"]}}],
        },
        "modalities": {"text": {"type": "text"}},
    }
    try:
        surgery, source = parse(SurgerySpec, plain), parse(ModelSpec, override(model, change))
    except SpecError as error:
        return Refused(name, str(error), about=frozenset(about))
    return SurgeryCase(name, surgery, parse(ModelSpec, model), source, about=frozenset(about))


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
        weight=0.5 + torch.rand(rows, length, generator=generator, dtype=torch.float64),
    )


def draw_(module: nn.Module, seed: int) -> None:
    """Draws every parameter and selection bias anew, those that start at zero too, so that nothing hides behind them;
    router logits are spread, so that nothing is nearly tied."""
    generator = torch.Generator().manual_seed(seed + 7)
    routers = {id(p) for m in module.modules() if isinstance(m, MoE) for p in m.router.parameters()}
    inside = [t for m in module.modules() if isinstance(m, MoE) for t in m.router.modules() if isinstance(t, Backbone)]
    routers -= {id(p) for trunk in inside for p in trunk.parameters()}  # trunks inside routers are as other trunks
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
