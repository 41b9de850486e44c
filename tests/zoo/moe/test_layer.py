"""The layer by hand: null and shared experts, the cut into pieces, statistics, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.moe.experts.ffn import GELUSpec, SwiGLUSpec
from zoo.moe.experts.shared import SharedSpec
from zoo.moe.kernels import grouped, reference
from zoo.moe.layer import MoE, NonFiniteError
from zoo.moe.policies.capacity import CapacitySpec
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routers.top_p import TopPSpec
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats
from zoo.spec import parse

Build = Callable[..., MoE]


def real(tokens: int, rows: int = 1) -> RoutingContext:
    return RoutingContext(shape=(rows, tokens // rows), mask=torch.ones(tokens, dtype=torch.bool))


def only(layer: MoE, expert: list[int], tokens: int) -> Tensor:
    """An exclusion that leaves these experts."""
    barred = torch.ones(tokens, layer.pool.experts, dtype=torch.bool)
    barred[:, expert] = False
    return barred


def through(layer: MoE, x: Tensor, exclude: Tensor) -> tuple[Routing, Tensor]:
    ctx = real(len(x))
    routing = layer.route(x, ctx, exclude)
    return routing, layer.finish(layer.start(x, routing, ctx))


def spec(**changes: object) -> MoESpec:
    fields = {"routed": 3, "experts": SwiGLUSpec(hidden=6), "router": TopKSpec(k=2, normalize="all"), **changes}
    return MoESpec(**fields)


def test_a_copy_with_fields_exchanged() -> None:
    ctx = real(4)
    changed = ctx.replace(layer=3)
    assert changed == replace(ctx, layer=3) and ctx.layer == 0 and type(changed) is RoutingContext
    with pytest.raises(TypeError, match="levels"):
        ctx.replace(levels=3)


def test_the_dense_mixture_by_hand(layer: Build) -> None:
    moe = layer(spec(router=TopPSpec(p=1.0), shared=SharedSpec(hidden=5, gate="sigmoid", count=2)))
    x = torch.randn(7, 8, dtype=torch.float64)
    probs = (x @ moe.router.gate.weight.T).softmax(-1)
    expected = torch.zeros_like(x)
    for e in range(3):
        gate, up = (x @ moe.experts.gate_up[e].T).chunk(2, -1)
        expected += probs[:, e : e + 1] * ((F.silu(gate) * up) @ moe.experts.down[e].T)
    shared = moe.shared_experts
    assert shared is not None and shared.gate is not None
    gate, up = (x @ shared.gate_up.T).chunk(2, -1)
    hidden = F.silu(gate) * up
    for i in range(2):
        part = hidden[:, 5 * i : 5 * i + 5] @ shared.down[:, 5 * i : 5 * i + 5].T
        expected += torch.sigmoid(x @ shared.gate[i])[:, None] * part
    torch.testing.assert_close(moe(x, real(7)).y, expected)


def test_gelu_experts_by_hand(layer: Build) -> None:
    moe = layer(spec(experts=GELUSpec(hidden=6, bias=True, approximate="tanh"), router=TopPSpec(p=1.0)))
    for bias in (moe.experts.up_bias, moe.experts.down_bias):
        torch.nn.init.normal_(bias)
    x = torch.randn(4, 8, dtype=torch.float64)
    probs = (x @ moe.router.gate.weight.T).softmax(-1)
    weights = dict(moe.experts.named_parameters())
    expected = torch.zeros_like(x)
    for e in range(3):
        hidden = F.gelu(x @ weights["up"][e].T + weights["up_bias"][e], approximate="tanh")
        expected += probs[:, e : e + 1] * (hidden @ weights["down"][e].T + weights["down_bias"][e])
    torch.testing.assert_close(moe(x, real(4)).y, expected)


def test_null_experts_answer_nothing_themselves_or_a_constant(layer: Build) -> None:
    moe = layer(spec(null_experts=NullSpec(zero=1, copy=1, constant=1)))
    zero, copy, constant = (moe.pool.first(kind) for kind in ("zero", "copy", "constant"))
    assert (zero, copy, constant) == (3, 4, 5)
    x = torch.randn(5, 8, dtype=torch.float64)
    routing, y = through(moe, x, only(moe, [zero], 5))
    assert not bool(y.any()) and bool((routing.gate.sum(-1) > 0).all())
    routing, y = through(moe, x, only(moe, [zero, copy], 5))
    weight = torch.where(routing.expert == copy, routing.gate, 0).sum(-1, keepdim=True)
    torch.testing.assert_close(y, weight * x)  # MoE++: g_copy x
    routing, y = through(moe, x, only(moe, [constant], 5))
    null = moe.null_experts
    assert null.mix is not None and null.value is not None
    a = (x @ null.mix[0].T).softmax(-1)
    torch.testing.assert_close(y, routing.gate[:, :1] * (a[:, :1] * x + a[:, 1:] * null.value[0]))


def test_normalised_gates_give_the_whole_weight_beside_an_absent_slot(layer: Build) -> None:
    moe = layer(spec(router=TopKSpec(k=2), null_experts=NullSpec(copy=1)))
    x = torch.randn(5, 8, dtype=torch.float64)
    _, y = through(moe, x, only(moe, [3], 5))
    torch.testing.assert_close(y, x)


def test_the_router_weighs_shared_experts(layer: Build) -> None:
    moe = layer(spec(router=TopKSpec(k=2), shared=SharedSpec(count=2, hidden=4, gate="router")))
    x = torch.randn(5, 8, dtype=torch.float64)
    out = moe(x, real(5))
    assert out.routing.shared is not None
    total = out.routing.gate.sum(-1) + out.routing.shared.sum(-1)
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.float64))
    routed = moe.finish(moe.start(x, out.routing, real(5)))
    torch.testing.assert_close(out.y, routed + moe.shared(x, out.routing))


def test_the_pieces_compose_to_the_forward_pass_and_may_read_different_states(layer: Build) -> None:
    moe = layer(spec(shared=SharedSpec(hidden=4)))
    a, b, c = torch.randn(3, 6, 8, dtype=torch.float64)
    routing = moe.route(a, real(6))
    y = moe.finish(moe.start(b, routing, real(6))) + moe.shared(c, routing)
    assert torch.isfinite(y).all()
    whole = moe.finish(moe.start(a, routing, real(6))) + moe.shared(a, routing)
    torch.testing.assert_close(moe(a, real(6)).y, whole)


def test_batch_and_flat_inputs_give_the_same(layer: Build) -> None:
    moe = layer(spec())
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    ctx = real(6, rows=2)
    torch.testing.assert_close(moe(x, ctx).y.flatten(0, 1), moe(x.flatten(0, 1), ctx).y)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(5, 8), ValueError, r"x: got shape \(5, 8\), expected \[1, 6, 8\] or \[6, 8\]"),
        (torch.zeros(6, 7), ValueError, r"x: got shape \(6, 7\)"),
        (torch.zeros(6, 8, dtype=torch.int64), TypeError, r"x: got dtype torch\.int64, expected a floating-point"),
        (torch.zeros(6, 8, device="meta"), ValueError, r"x: on meta, but ctx\.mask is on cpu"),
    ],
)
def test_wrong_inputs_are_named(layer: Build, x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer(spec())(x, real(6))


def test_check_raises_for_tokens_that_are_not_finite() -> None:
    moe = MoE(spec(), 8, check=True)
    x = torch.zeros(6, 8)
    x[4, 1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"x: 1 of 6 tokens hold NaN or infinity, the first at row 4"):
        moe(x, real(6))


def test_statistics_by_hand() -> None:
    """Three real tokens over two routed and one zero expert; one slot dropped."""
    raw = torch.tensor([[0.0, 0.0, 0.0]] * 4)
    expert = torch.tensor([[0, 2], [0, 3], [3, 2], [3, 3]])
    chosen = torch.tensor([[0, 2], [0, 1], [0, 2], [3, 3]])
    mask = torch.tensor([True, True, True, False])
    routing = Routing(expert=expert, gate=torch.ones(4, 2), raw=raw, scores=raw, mask=mask, chosen=chosen)
    stats = Stats(routing, Pool(routed=2, null=NullSpec(zero=1)))
    assert stats.load.tolist() == [3, 1, 2]
    assert (int(stats.tokens), int(stats.kept), int(stats.null)) == (3, 4, 2)
    assert float(stats.mean_k) == pytest.approx(2.0)
    assert stats.count.tolist() == [2, 2, 2, 0]
    assert float(stats.null_share) == pytest.approx(1 / 3)
    assert float(stats.dropped_share) == pytest.approx(1 / 3)
    assert float(stats.imbalance) == pytest.approx(1.5)
    assert float(stats.entropy) == pytest.approx(float(torch.tensor(3.0).log()))


def test_routing_from_a_mask_and_from_the_experts_choice() -> None:
    scores = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    keep = torch.tensor([[True, False, True], [False, False, False]])
    mask = torch.tensor([True, True])
    routing = Routing.from_mask(keep, scores, raw=scores, scores=scores, mask=mask)
    assert routing.expert.tolist() == [[2, 0, 3], [3, 3, 3]]
    torch.testing.assert_close(routing.gate, torch.tensor([[0.3, 0.2, 0], [0, 0, 0]]))
    index = torch.tensor([[0], [1], [0]])  # expert 0 takes token 0, expert 1 token 1, expert 2 token 0
    gate = torch.tensor([[0.2], [0.1], [0.3]])
    masked = torch.tensor([True, False])
    routing = Routing.from_expert_choice(index, gate, raw=scores, scores=scores, mask=masked)
    assert routing.expert.tolist() == [[2, 0, 3], [3, 3, 3]]
    torch.testing.assert_close(routing.gate[0], torch.tensor([0.3, 0.2, 0]))


@pytest.mark.parametrize("counts", [[2, 0, 3], [0, 0, 0], [0, 6, 0], [1, 1, 1]])
def test_grouped_products_equal_the_readable_ones(counts: list[int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor(counts)
    found = []
    for kernel in (reference, grouped):
        out = kernel.linear(x, weight, sizes)
        found.append((out, *torch.autograd.grad(out.square().sum(), (x, weight), allow_unused=True)))
    for got, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if expected is None else expected)
    assert not bool(found[1][0][sum(counts) :].any())
    assert torch.autograd.gradcheck(lambda a, b: grouped.linear(a, b, sizes), (x, weight))


def test_the_operator_is_well_formed() -> None:
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(3, 5, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.moezoo.grouped_linear.default, (x, weight, torch.tensor([2, 0, 3])))
    torch.library.opcheck(torch.ops.moezoo.grouped_outer.default, (x.detach(), x.detach(), torch.tensor([2, 0, 3])))


def test_under_autocast_the_router_stays_in_float32(layer: Build) -> None:
    moe = layer(spec()).float()
    x = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = moe(x, real(6))
    assert out.routing.raw.dtype == torch.float32 and out.routing.gate.dtype == torch.float32
    torch.testing.assert_close(out.routing.raw, moe(x, real(6)).routing.raw)
    torch.testing.assert_close(out.y.float(), moe(x, real(6)).y, atol=0.05, rtol=0.05)


def test_a_layer_that_drops_declares_its_weakest_promise() -> None:
    dropping = spec(policy=(CapacitySpec(),), allow_future=True)
    declared = dropping.properties()
    assert (declared.scope, declared.causal, declared.fixed_k) == ("batch", False, False)
    assert replace(dropping, policy=()).properties().causal


def test_maps_before_dispatch_and_after_combine():
    """Latent experts: rows of width 4 travel, null experts see the layer's own input."""
    plain = {
        "routed": 3, "experts": {"type": "swiglu", "hidden": 5}, "null_experts": {"copy": 1},
        "router": {"type": "top_k", "k": 2, "gate": {"init_std": 0.5}},
    }  # fmt: skip
    spec = parse(MoESpec, {"type": "moe", **plain})
    torch.manual_seed(0)
    narrow, wide = torch.randn(4, 8), torch.randn(8, 4)
    for backend in ("reference", "grouped", "fused"):
        layer = replace(spec, backend=backend).build(8)
        torch.manual_seed(1)
        layer.router.reset_parameters()
        experts = spec.experts.build(4, 3, backend)
        experts.before = lambda x: x @ narrow.T
        experts.after = lambda y: y @ wide.T
        layer.experts = experts
        x = torch.randn(6, 8)
        out = layer(x, RoutingContext(shape=(1, 6), mask=torch.ones(6, dtype=torch.bool)))
        expected = torch.zeros(6, 8)
        for t in range(6):
            for e, gate in zip(out.routing.expert[t].tolist(), out.routing.gate[t], strict=True):
                g, up = (experts.gate_up[e] @ narrow @ x[t]).chunk(2) if e < 3 else (None, None)
                y = x[t] if e == 3 else wide @ experts.down[e] @ (torch.nn.functional.silu(g) * up)
                expected[t] += gate * y
        torch.testing.assert_close(out.y, expected)


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    plain = {"routed": 3, "experts": {"type": "gelu", "hidden": 5}, "router": {"type": "top_k"}, "backend": "triton"}
    layer = parse(MoESpec, {"type": "moe", **plain}).build(8)
    with pytest.raises(ValueError, match="no kernel for GELUExperts on cpu; expected backend: fused"):
        layer(torch.randn(6, 8), RoutingContext(shape=(1, 6), mask=torch.ones(6, dtype=torch.bool)))
