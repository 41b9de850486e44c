"""LoRA experts beside the frozen linear maps of a trunk, more of them in higher layers (MoLA, arXiv 2402.08562)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone.adapters.base import Adapter, AdapterSpec, Map, maps_of
from zoo.backbone.adapters.counts import BANDS, Rule, spread
from zoo.backbone.inner import InnerMoE, check_router
from zoo.moe.balance.base import BalanceSpec
from zoo.moe.experts.lora import LoraSpec
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.moe.routers.base import RouterSpec
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats
from zoo.spec import Cost


@dataclass(frozen=True, kw_only=True)
class LoraExpertsSpec(AdapterSpec):
    """y = W0 x + b + sum_i gate_i alpha / r B_i A_i x beside every map that is named, with a router for each map.

    The routings of all maps of a layer are one record: balance is over their tokens together, where each map's share is
    1 / their number.

    freeze   the model's own weights get no gradient
    counts   experts of each layer's maps: inverted_triangle (2-4-6-8 over four bands of the depth, the published
             best), triangle (8-6-4-2), hourglass (8-2-2-8), rectangle (5-5-5-5), or a list of one number per layer or
             per equal band, 0 for none
    ranks    r: one number, or a list likewise
    alpha    numerator of the factor alpha / r
    dropout  share of the experts' inputs set to zero in training
    targets  patterns over the names of maps in a block, such as attention.* or ffn.down
    router   how a token chooses; its k is lowered to the number of experts where that is smaller
    balance  losses that keep experts in use
    """

    counts: Rule | tuple[int, ...] = "inverted_triangle"
    ranks: int | tuple[int, ...] = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attention.*",)
    router: RouterSpec = field(default_factory=TopKSpec)
    balance: tuple[BalanceSpec, ...] = ()

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets: got none, expected at least one pattern")
        if getattr(self.router, "bias", False):
            raise ValueError("router.bias: the maps of a layer share one record, which moves no bias; expected false")
        check_router(self.router)
        most = max(BANDS[self.counts] if isinstance(self.counts, str) else self.counts, default=0)
        least = min((self.ranks,) if isinstance(self.ranks, int) else self.ranks, default=0)
        if least < 1:
            raise ValueError(f"ranks: got {least}, expected 1 or more")
        self.layer(max(most, 1), least, 1)

    def layer(self, count: int, rank: int, outputs: int) -> MoESpec:
        """The experts beside one map as an MoE layer."""
        k = getattr(self.router, "k", None)
        router = self.router if k is None or k <= count else replace(self.router, k=count)  # type: ignore[call-arg]
        lora = MapLoraSpec(rank=rank, alpha=self.alpha, dropout=self.dropout, width=outputs)
        return MoESpec(routed=count, experts=lora, router=router, balance=self.balance)

    def check(self, maps: Sequence[Mapping[str, Map]]) -> None:
        for name in ("counts", "ranks"):
            try:
                numbers = spread(getattr(self, name), len(maps))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if not max(numbers):
                raise ValueError(f"{name}: got 0 in every layer, expected some")
        known = sorted({name for block in maps for name in block})
        for i, pattern in enumerate(self.targets):
            if not any(fnmatch(name, pattern) for name in known):
                raise ValueError(
                    f"targets[{i}]: no map {pattern!r} in any block; there are {', '.join(known) or 'none'}"
                )

    def cost(self, maps: Sequence[Mapping[str, Map]]) -> Cost:
        total = Cost()
        for index, block in enumerate(maps):
            for spec, place in self._beside(block, index, len(maps)).values():
                total = total + spec.cost(place.inputs)
        return total

    def _beside(self, maps: Mapping[str, Map], index: int, depth: int) -> dict[str, tuple[MoESpec, Map]]:
        """What stands beside which map of one block."""
        count, rank = spread(self.counts, depth)[index], spread(self.ranks, depth)[index]
        named = {n: m for n, m in maps.items() if count and any(fnmatch(n, pattern) for pattern in self.targets)}
        return {name: (self.layer(count, rank, place.outputs), place) for name, place in named.items()}

    def stands(self, maps: Mapping[str, Map], index: int, depth: int) -> list[str]:
        return list(self._beside(maps, index, depth))

    def attach(self, block: nn.Module, index: int, depth: int) -> None:
        beside = self._beside(maps_of(block), index, depth)
        if beside:
            block.add_module("adapter", LoraExpertsOfBlock(beside))


@dataclass(frozen=True, kw_only=True)
class MapLoraSpec(LoraSpec):
    """LoRA experts from the width of a map's input to that of its output.

    width  of the output
    """

    width: int

    def outputs(self, dim: int) -> int:
        return self.width


class LoraExpertsOfBlock(Adapter):
    """See LoraExpertsSpec. One MoE layer for each adapted map; the first one hands on the record of all.

    Hooks on the maps add what the experts answer, so that the block and its maps stay as they are, names included.
    """

    def __init__(self, beside: Mapping[str, tuple[MoESpec, Map]]) -> None:
        super().__init__()
        self.places = {name: place for name, (_, place) in beside.items()}
        self.maps = nn.ModuleDict()
        for number, (name, (spec, place)) in enumerate(beside.items()):
            self.maps[_key(name)] = MoE(spec, place.inputs) if number else InnerMoE(spec, place.inputs)
            place.module.register_forward_hook(_Beside(self, name, number))

    def layer(self, name: str) -> MoE:
        """The MoE layer beside a map."""
        return cast(MoE, self.maps[_key(name)])

    @property
    def first(self) -> InnerMoE:
        """The layer that stands for all of them to the block."""
        return cast(InnerMoE, next(iter(self.maps.values())))

    def answer(self, name: str, number: int, x: Tensor) -> Tensor:
        """x [B, S, I] -> what the experts beside the map add to it [B, S, O]; leaves the routing in the record."""
        ctx, layer = _of_map(self.first.context(), number), self.layer(name)
        if tuple(x.shape[:-1]) != ctx.shape:
            raise ValueError(
                f"{name}: was called with states {tuple(x.shape)}, expected {ctx.shape} tokens; adapters stand beside "
                "maps that work on all tokens of a batch"
            )
        flat = x.flatten(0, 1)
        routing = layer.route(flat, ctx)
        record = LayerRecord(
            routing, Stats(routing, layer.pool), ctx.shape, ctx.document, ctx.modality, weight=ctx.weight
        )
        self.first.heard.append(record)
        return layer.finish(layer.start(flat, routing, ctx)).unflatten(0, ctx.shape)

    def products(self) -> Iterator[tuple[Map, Tensor]]:
        """Every adapted map and the matrix [outputs, inputs] that its experts are, in float64.

        Raises ValueError naming the map whose experts are no fixed matrix."""
        for name, place in self.places.items():
            layer = self.layer(name)
            weight = fixed_weights(layer)
            if weight is None:
                raise ValueError(
                    f"{name}: its router chooses among {layer.pool.experts} experts by the token, so that they are no "
                    "fixed matrix; only one expert of constant weight, or routers without weights, can be merged"
                )
            yield place, layer.experts.product(weight)  # type: ignore[operator]


class _Beside:
    """The hook on a map's module; an object, so that a copied model has hooks of its own."""

    def __init__(self, adapter: LoraExpertsOfBlock, name: str, number: int) -> None:
        self.adapter, self.name, self.number = adapter, name, number

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        place = self.adapter.places[self.name]
        more = self.adapter.answer(self.name, self.number, inputs[0]).to(out.dtype)
        return out + F.pad(more, (place.start, out.shape[-1] - place.stop))


def _key(name: str) -> str:
    """A map's name as a module's, which may hold no dot."""
    return name.replace(".", "_")


def _of_map(ctx: RoutingContext, number: int) -> RoutingContext:
    """The context with noise of the map's own."""
    if ctx.generator is None:
        return ctx
    return ctx.replace(generator=torch.Generator().manual_seed((ctx.generator.initial_seed() * 31 + number) % 2**63))


@torch.no_grad()
def fixed_weights(layer: MoE) -> Tensor | None:
    """[E] the weights of a layer's experts where they are the same for every input, else None: one expert whose weight
    no token moves, or a router whose maps are all zero."""
    router, width = layer.router, layer.dim
    still = all(not bool(p.any()) for p in router.parameters() if p.dim() > 1)
    if layer.pool.experts > 1 and not still:
        return None
    x = torch.randn(64, width, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 64)[:, None]
    device = next(router.parameters()).device
    ctx = RoutingContext(shape=(1, 64), mask=torch.ones(64, dtype=torch.bool, device=device))
    routing = layer.route(x.to(device), ctx)
    table = routing.gate.new_zeros(64, layer.pool.experts + 1).scatter(1, routing.expert, routing.gate)
    return table[0, :-1] if bool((table == table[0]).all()) else None
