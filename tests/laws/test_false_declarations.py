"""A part that promises what it does not do is caught, by the law that is about the promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from zoo.laws import LAWS, run
from zoo.laws.cases import LayerCase, SurgeryCase, surgery_case
from zoo.laws.suite import judge
from zoo.models.unified import ModelSpec
from zoo.moe.balance.base import BalanceContext
from zoo.moe.balance.switch import SwitchSpec
from zoo.moe.experts.ffn import SwiGLUExperts, SwiGLUSpec
from zoo.moe.pool import NullSpec, Pool, Properties
from zoo.moe.routers.top_k import TopKRouter, TopKSpec
from zoo.moe.routing import Routing, RoutingContext, Rows
from zoo.moe.spec import MoESpec
from zoo.surgery.base import Described, State
from zoo.surgery.copy import CopySpec

Change = Callable[[TopKRouter, Tensor, RoutingContext], Routing]


@dataclass(frozen=True, kw_only=True)
class Lying(TopKSpec):
    """A top-k router with another forward pass under the same promises."""

    change: Change

    def build(self, dim: int, pool: Pool) -> TopKRouter:
        router = LyingRouter(self, dim, pool)
        return router


class LyingRouter(TopKRouter):
    """See Lying."""

    def forward(self, x: Tensor, ctx: RoutingContext) -> Routing:
        change: Change = self.spec.change
        return change(self, x, ctx)


def plain(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
    return TopKRouter.forward(router, x, ctx)


def sees_the_future(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
    rows = x.view(*ctx.shape, -1)
    later = rows.flip(1).cumsum(1).flip(1) if x.numel() else rows
    return plain(router, later.reshape(x.shape), ctx)


def sees_the_batch(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
    return plain(router, x + x.sum(0), ctx)


def serves_padding(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
    return plain(router, x, ctx.replace(mask=torch.ones_like(ctx.mask)))


def cuts_the_gradient(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
    routing = plain(router, x, ctx)
    return routing.replace(gate=routing.gate.detach())


def draws_in_secret(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
    if ctx.training:
        noise = torch.randn(x.shape, generator=ctx.generator, dtype=x.dtype)
        return plain(router, x + noise, ctx)
    return plain(router, x, ctx)


def varies_k(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
    routing = plain(router, x, ctx)
    second = torch.tensor([False, True]) & (x[:, :1] > 0)
    expert = routing.expert.masked_fill(second, router.pool.experts)
    return routing.replace(expert=expert, gate=router.weigh(routing.raw, expert)[0])


def weighs_otherwise(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
    routing = plain(router, x, ctx)
    return routing.replace(gate=routing.gate * 1.01)


def reads_a_number(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
    if float(x.detach().abs().sum()) > 1e9:
        raise ValueError("too large")
    return plain(router, x, ctx)


def broken_by(**changes: object) -> set[str]:
    """The laws that a layer with these parts breaks."""
    spec = MoESpec(**{"routed": 4, "experts": SwiGLUSpec(hidden=6), "router": TopKSpec(), **changes})
    return {r.law for r in run(cases=[LayerCase("lying", spec)]) if r.outcome != "held"}


def test_the_honest_layer_breaks_nothing() -> None:
    assert broken_by(router=Lying(change=plain), balance=(SwitchSpec(),)) == set()


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (sees_the_future, "causality.layer"),
        (sees_the_future, "batch.alone"),
        (sees_the_batch, "batch.split"),
        (serves_padding, "padding.zero"),
        (cuts_the_gradient, "gradient.router"),
        (draws_in_secret, "noise.declared"),
        (draws_in_secret, "noise.silent"),
        (varies_k, "contract.fixed_k"),
        (weighs_otherwise, "contract.weigh"),
        (reads_a_number, "compile.layer"),
    ],
)
def test_a_router_that_lies_is_caught(change: Change, law: str) -> None:
    spec = MoESpec(routed=4, experts=SwiGLUSpec(hidden=6), router=Lying(change=change))
    (checked,) = [known for known in LAWS if known.name == law]
    case = LayerCase("expert lying", spec)
    assert checked.applies(case)
    assert judge(checked, case).outcome == "broken"


@dataclass(frozen=True, kw_only=True)
class ClaimsExact(TopKSpec):
    """Claims a task gradient for tokens that only zero experts serve."""

    def properties(self, pool: Pool) -> Properties:
        return replace(super().properties(pool), task_gradient="exact")


def test_a_false_gradient_claim_is_caught() -> None:
    silent = broken_by(router=ClaimsExact(), null_experts=NullSpec(zero=2))
    assert silent == {"gradient.any_choice"}
    assert broken_by(router=TopKSpec(), null_experts=NullSpec(zero=2)) == set()


@dataclass(frozen=True, kw_only=True)
class Backwards(SwitchSpec):
    """Rewards load."""

    def loss(self, routing: Routing, ctx: BalanceContext) -> Tensor:
        return -super().loss(routing, ctx)


@dataclass(frozen=True, kw_only=True)
class CountsPadding(SwitchSpec):
    """Averages probabilities over padding too."""

    def loss(self, routing: Routing, ctx: BalanceContext) -> Tensor:
        return super().loss(routing.replace(mask=torch.ones_like(routing.mask)), ctx)


@dataclass(frozen=True, kw_only=True)
class CountsOnlyHere(SwitchSpec):
    """Says global_exact, counts its own micro-batch."""

    def loss(self, routing: Routing, ctx: BalanceContext) -> Tensor:
        return super().loss(routing, replace(ctx, counts=None))


@dataclass(frozen=True, kw_only=True)
class IgnoresWeights(SwitchSpec):
    """Counts every token once."""

    def loss(self, routing: Routing, ctx: BalanceContext) -> Tensor:
        return super().loss(routing, replace(ctx, weight=None))


@dataclass(frozen=True, kw_only=True)
class HalfCopy(CopySpec):
    """Halves the experts."""

    def apply(self, spec: ModelSpec, state: State, sources: Mapping[str, Described]) -> Described:
        _, copied = super().apply(spec, state, sources)
        return spec, {name: value / 2 if "experts" in name else value for name, value in copied.items()}


def test_a_surgery_that_moves_outputs_is_caught() -> None:
    honest = surgery_case("honest", {"type": "copy", "stage": "a"}, {}, set())
    assert isinstance(honest, SurgeryCase)
    assert {r.outcome for r in run(cases=[honest])} == {"held"}
    lying = replace(honest, spec=HalfCopy(stage="a"))
    assert {r.law for r in run(cases=[lying]) if r.outcome == "broken"} == {"surgery.bound"}


def test_rules_that_lie_are_caught() -> None:
    assert {"weights.zero", "weights.two"} == broken_by(balance=(IgnoresWeights(),))
    assert {"balance.bound", "balance.slope", "balance.step"} <= broken_by(balance=(Backwards(),))
    assert "padding.others" in broken_by(balance=(CountsPadding(),))
    wide = broken_by(balance=(CountsOnlyHere(scope="global_exact"),))
    assert {"accumulation.exact", "world.losses"} <= wide


@dataclass(frozen=True, kw_only=True)
class Leaky(SwiGLUSpec):
    """Experts that give rows behind the last expert's a value, and differ between backends."""

    def build(self, dim: int, count: int, backend: str) -> SwiGLUExperts:
        return LeakyExperts(self, dim, count, backend)


class LeakyExperts(SwiGLUExperts):
    """See Leaky."""

    def forward(self, rows: Rows, ctx: RoutingContext) -> Tensor:
        return super().forward(rows, ctx) + (1e-3 if self.backend == "grouped" else 0.0)


def test_experts_that_lie_are_caught() -> None:
    found = broken_by(experts=Leaky(hidden=6))
    assert "backends.agree" in found


def test_an_exception_counts_as_broken() -> None:
    def fails(router: TopKRouter, x: Tensor, ctx: RoutingContext) -> Routing:
        raise RuntimeError("no such kernel")

    spec = MoESpec(routed=4, experts=SwiGLUSpec(hidden=6), router=Lying(change=fails))
    results = run(cases=[LayerCase("failing", spec)])
    errors = [r for r in results if r.outcome == "error"]
    assert errors and all("RuntimeError: no such kernel" in r.detail for r in errors)
