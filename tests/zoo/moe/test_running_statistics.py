"""Running statistics of a router, changed by what a routing returns, once per optimiser step; what `begin` carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.attention import GroupedQuerySpec
from zoo.backbone.blocks.sequential import SequentialSpec
from zoo.backbone.trunk import Backbone, BackboneSpec, LayersSpec
from zoo.laws.accumulation import running
from zoo.laws.cases import LayerCase
from zoo.laws.probe import take
from zoo.moe.balance.step import BalanceStep
from zoo.moe.experts.ffn import SwiGLUSpec
from zoo.moe.pool import Pool
from zoo.moe.routers.top_k import TopKRouter, TopKSpec
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.spec import MoESpec


@dataclass(frozen=True, kw_only=True)
class CentredSpec(TopKSpec):
    """Top-k on inputs less their running mean."""

    def build(self, dim: int, pool: Pool) -> Centred:
        return Centred(self, dim, pool)


class Centred(TopKRouter):
    """Keeps the mean of all inputs it has seen in training."""

    mean: Tensor
    seen: Tensor

    def __init__(self, spec: CentredSpec, dim: int, pool: Pool) -> None:
        super().__init__(spec, dim, pool)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("seen", torch.zeros(()))

    def begin(self, tokens: Tokens, cache: Any, layer: int) -> dict[str, Tensor]:
        start = torch.full(tokens.shape, float(layer))
        if cache is not None:
            start = start + cache.routes.get(f"{layer}.start", 0)
            cache.routes[f"{layer}.start"] = start
        return {f"{layer}.start": start}

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        routing = super().forward(x - self.mean, ctx)
        real = torch.where(ctx.mask[:, None], x, 0)
        return routing.replace(update={"sum": real.sum(0), "tokens": ctx.mask.sum()})

    def update(self, totals: Mapping[str, Tensor]) -> None:
        self.seen += totals["tokens"]
        self.mean += ((totals["sum"] - totals["tokens"] * self.mean) / self.seen.clamp(min=1)).to(self.mean.dtype)


def build(checkpoint: bool = False) -> Backbone:
    moe = MoESpec(routed=4, experts=SwiGLUSpec(hidden=4), router=CentredSpec())
    block = SequentialSpec(attention=GroupedQuerySpec(heads=2), ffn=moe)
    torch.manual_seed(0)
    return BackboneSpec(dim=8, layers=(LayersSpec(repeat=2, block=block),), checkpoint=checkpoint).build()


def tokens(rows: int = 4) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, 5, dtype=torch.bool)
    mask[-1, 3:] = False
    return Tokens(embedding=torch.randn(rows, 5, 8, generator=generator), mask=mask)


def statistics(trunk: Backbone) -> list[Tensor]:
    return [value.clone() for layer in trunk.moe_layers() for value in layer.router.buffers()]


def train(
    trunk: Backbone, pieces: list[Tokens], reduce: Callable[[Tensor], Tensor] = lambda flat: flat
) -> list[Tensor]:
    """The statistics after one optimiser step, which are not changed before its end."""
    before = statistics(trunk)
    step = BalanceStep(trunk.train().moe_layers(), reduce)
    for piece in pieces:
        out = trunk(piece)
        step.add(out.records)
        out.tokens.embedding.nan_to_num(0).sum().backward()
        assert all(map(torch.equal, statistics(trunk), before))
    step.finish(0)
    return statistics(trunk)


def test_the_running_mean_is_that_of_the_real_tokens_of_the_step() -> None:
    after = train(build(), [tokens()])
    assert [float(after[i]) for i in (1, 3)] == [18.0, 18.0]
    assert bool(after[0].any()) and not torch.equal(after[0], after[2])


@pytest.mark.parametrize("checkpoint", [False, True])
def test_micro_batches_and_recomputation_change_nothing(checkpoint: bool) -> None:
    whole = train(build(), [tokens()])
    pieces = train(build(checkpoint), [take(tokens(), slice(0, 1)), take(tokens(), slice(1, 4))])
    torch.testing.assert_close(pieces, whole)


def test_the_sums_of_all_ranks_come_in_the_one_reduction() -> None:
    calls: list[Tensor] = []

    def two_ranks(flat: Tensor) -> Tensor:
        calls.append(flat)
        return 2 * flat

    after, alone = train(build(), [tokens()], two_ranks), train(build(), [tokens()])
    assert [len(flat) for flat in calls] == [2 * (9 + 8 + 1)]
    torch.testing.assert_close(after[0], alone[0])
    assert float(after[1]) == 36.0


def test_evaluation_changes_nothing() -> None:
    trunk = build().eval()
    before = statistics(trunk)
    trunk(tokens())
    assert all(map(torch.equal, statistics(trunk), before))


def test_a_router_without_statistics_gets_no_sums() -> None:
    layer = MoESpec(routed=4, experts=SwiGLUSpec(hidden=4), router=TopKSpec()).build(8)
    assert not layer.router(torch.randn(3, 8), RoutingContext(shape=(1, 3), mask=torch.ones(3).bool())).update


def test_sums_of_another_shape_are_refused() -> None:
    trunk = build()
    records = trunk(tokens()).records
    step = BalanceStep(trunk.moe_layers())
    step.add(records)
    with pytest.raises(ValueError, match=r"update: layer 0 gave \{\}, before it gave \{'sum': \(8,\)"):
        step.add([type(r)(r.routing.replace(update={}), r.stats, r.shape) for r in records])


def test_the_law_of_running_statistics() -> None:
    spec = MoESpec(routed=4, experts=SwiGLUSpec(hidden=4), router=CentredSpec())
    assert running.applies(LayerCase("centred", spec))
    running(LayerCase("centred", spec))
    assert not running.applies(LayerCase("plain", MoESpec(routed=4, experts=SwiGLUSpec(hidden=4), router=TopKSpec())))


def test_begin_knows_its_layer() -> None:
    trunk = build().eval()
    cache = trunk.new_cache()
    for _ in range(2):
        values = trunk._begin(tokens(), cache)
    assert {name: float(value.unique()) for name, value in values.items()} == {"0.start": 0.0, "1.start": 2.0}
    assert set(cache.routes) == {"0.start", "1.start"}
