"""The kernels in Triton's interpreter, float32. test_triton.py runs this file with TRITON_INTERPRET=1."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.moe.kernels import reference
from zoo.moe.kernels.triton import available, choose, swiglu_mixture
from zoo.moe.kernels.triton import plan as plans
from zoo.moe.kernels.triton.settings import SMALL_ROWS

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@dataclass
class Case:
    """Inputs of the mixture, leaves that want gradients."""

    x: Tensor
    gate_up: Tensor
    down: Tensor
    expert: Tensor
    gate: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.x, self.gate_up, self.down, self.expert, self.gate

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.x, self.gate_up, self.down, self.gate


def case(expert: Tensor, experts: int, dim: int, hidden: int) -> Case:
    """Random inputs around a given choice of experts."""
    draw = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=draw) * shape[-1] ** -0.5).requires_grad_()

    gate = torch.rand(expert.shape, generator=draw).requires_grad_()
    x = torch.randn(len(expert), dim, generator=draw).requires_grad_()
    return Case(x, leaf(experts, 2 * hidden, dim), leaf(experts, dim, hidden), expert, gate)


def drawn(tokens: int, slots: int, ids: int) -> Tensor:
    """Uniform expert ids 0..ids-1."""
    return torch.randint(ids, (tokens, slots), generator=torch.Generator().manual_seed(1))


def plain(x: Tensor, gate_up: Tensor, down: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
    """The mixture by the reference's product."""
    experts, slots = len(gate_up), expert.shape[1]
    flat = expert.flatten()
    order = flat.argsort(stable=True)[: int((flat < experts).sum())]
    counts = torch.bincount(flat[order], minlength=experts)
    token = order // slots
    first, second = reference.linear(x[token], gate_up, counts).chunk(2, dim=-1)
    out = reference.linear(F.silu(first) * second, down, counts) * gate.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, token, out)


def gradients(y: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a fixed random projection of y."""
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad((y * weight).sum(), leaves)


CASES = {
    "decoding": case(drawn(3, 2, 4), 4, 24, 20),
    "one token": case(drawn(1, 1, 1), 1, 16, 16),
    "skipped ids": case(drawn(9, 3, 7), 4, 20, 24),
    "short tiles": case(drawn(40, 2, 9), 8, 40, 36),
    "tall tiles": case(drawn(90, 2, 3), 2, 33, 65),
    "many rows": case(drawn(SMALL_ROWS // 2 + 7, 2, 6), 5, 17, 19),
    "empty experts": case(drawn(20, 2, 2) * 3 + 1, 6, 24, 20),
    "all on one": case(torch.full((70, 1), 2), 4, 24, 20),
    "no rows": case(torch.full((5, 2), 4), 4, 24, 20),
    "no tokens": case(torch.zeros(0, 2, dtype=torch.int64), 3, 24, 20),
    "no slots": case(torch.zeros(4, 0, dtype=torch.int64), 3, 24, 20),
}


def test_the_interpreter_counts_as_a_device() -> None:
    assert available(torch.device("cpu"))


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_agree_with_the_reference(name: str) -> None:
    here = CASES[name]
    y, expected = swiglu_mixture(*here.inputs), plain(*here.inputs)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    for got, want in zip(gradients(y, here.leaves), gradients(expected, here.leaves), strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputing_keeps_no_preactivations(recompute: bool) -> None:
    here, kept = CASES["short tiles"], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        swiglu_mixture(*here.inputs, recompute=recompute)
    assert (here.expert.numel() * here.gate_up.shape[1] in kept) != recompute


def test_gradients_are_only_computed_where_wanted() -> None:
    here = CASES["decoding"]
    frozen = [t.detach() for t in (here.gate_up, here.down)]
    x = here.x.detach().requires_grad_()
    y = swiglu_mixture(x, *frozen, here.expert, here.gate.detach())
    (grad,) = gradients(y, (x,))
    torch.testing.assert_close(grad, gradients(plain(*here.inputs), (here.x,))[0], **TOLERANCE)
    assert not swiglu_mixture(x.detach(), *frozen, here.expert, here.gate.detach()).requires_grad


def test_a_token_without_experts_reaches_nothing() -> None:
    here = CASES["skipped ids"]
    expert = here.expert.clone()
    expert[0] = 4
    bad = here.x.detach().clone()
    bad[0] = torch.nan
    bad.requires_grad_()
    leaves = (bad, *here.leaves[1:])
    y = swiglu_mixture(bad, here.gate_up, here.down, expert, here.gate)
    clean = plain(here.x, here.gate_up, here.down, expert, here.gate)
    torch.testing.assert_close(y, clean, **TOLERANCE)
    for got, want in zip(gradients(y, leaves), gradients(clean, here.leaves), strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("tokens", [1, 7, 40, 200])
@pytest.mark.parametrize("height", [16, 64])
def test_both_ways_of_planning_agree(tokens: int, height: int) -> None:
    expert, experts = drawn(tokens, 2, 9), 7
    small = plans._plan_small(expert, experts, height)
    large = plans._plan_large(expert, experts, height)
    assert torch.equal(small[0], large[0])
    assert torch.equal(small[1], large[1])
    real = large[2][:, 0] < experts
    assert torch.equal(small[2][:, 0] < experts, real)
    assert torch.equal(small[2][real], large[2][real])


def test_tiles_cover_every_row_once() -> None:
    expert, experts, height = drawn(300, 2, 5), 4, 64
    rows = plans.plan(expert, experts, height)
    covered = []
    for owner, first, end in rows.tiles.tolist():
        if owner < experts:
            covered += range(first, min(first + height, end))
            assert (expert.flatten()[rows.order[first : min(first + height, end)].long()] == owner).all()
    assert covered == list(range(int((expert < experts).sum())))


@pytest.mark.parametrize(("rows", "experts", "height"), [(64, 64, 16), (130, 8, 64), (3, 8, 16), (0, 4, 16)])
def test_the_worst_routing_fits_the_bound(rows: int, experts: int, height: int) -> None:
    used = min(rows, experts)
    counts = [1] * used
    while sum(counts) + height <= rows:  # as many tiles as can be made: one row in each expert's last
        counts[0] += height
    assert sum(-(-count // height) for count in counts) <= plans.tile_bound(rows, experts, height)
    assert plans.tile_bound(rows, experts, height) <= rows // height + used


@pytest.mark.parametrize(("tokens", "dynamic", "recompute"), [((40,), False, True), ((30, 45), True, False)])
def test_compiled_equals_eager_without_a_graph_break(tokens: tuple[int, ...], dynamic: bool, recompute: bool) -> None:
    compiled = torch.compile(swiglu_mixture, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for count in tokens:
        here = case(drawn(count, 2, 9), 8, 24, 20)
        y, expected = compiled(*here.inputs, recompute=recompute), swiglu_mixture(*here.inputs)
        assert torch.equal(y, expected)
        for got, want in zip(gradients(y, here.leaves), gradients(expected, here.leaves), strict=True):
            assert torch.equal(got, want)


def test_the_choice_may_be_made_while_compiling() -> None:
    def layer(*inputs: Tensor) -> Tensor:
        rows, (experts, dim, hidden) = inputs[3].numel(), inputs[2].shape
        assert available(inputs[0].device)
        assert choose(rows, experts, dim, hidden, inputs[0].dtype) == "fused"
        return swiglu_mixture(*inputs)

    inputs = [tensor.detach() for tensor in CASES["decoding"].inputs]
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(*inputs)
    assert torch.equal(y, swiglu_mixture(*inputs))


def test_operators_keep_their_promises() -> None:
    here = CASES["skipped ids"]
    rows = plans.plan(here.expert, 4, 16)
    ops, slots, count = torch.ops.moezoo, here.expert.shape[1], here.expert.numel()
    pre, left = torch.randn(count, 48), torch.randn(count, 24)
    x, gate_up, down, gate = (t.detach() for t in here.leaves)
    calls = [
        (ops.tile_plan, (here.expert, 4, 16)),
        (ops.swiglu_mixture, (*here.inputs, *rows, True)),
        (ops.swiglu_preact, (x, gate_up, *rows, slots)),
        (ops.swiglu_hidden_grad, (x, down, pre, gate, *rows)),
        (ops.swiglu_input_grad, (pre, gate_up, here.expert, *rows)),
        (ops.gathered_outer, (left, x, *rows, slots, True)),
    ]
    for op, inputs in calls:
        torch.library.opcheck(op, inputs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shapes_without_running(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        x = torch.empty(33, 24, dtype=dtype, requires_grad=True)
        gate_up, down = torch.empty(4, 40, 24, dtype=dtype), torch.empty(4, 24, 20, dtype=dtype, requires_grad=True)
        expert, gate = torch.zeros(33, 2, dtype=torch.int64), torch.empty(33, 2, requires_grad=True)
        y = swiglu_mixture(x, gate_up, down, expert, gate)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        found = torch.autograd.grad(y.sum(), (x, down, gate))
        assert [(g.shape, g.dtype) for g in found] == [(t.shape, t.dtype) for t in (x, down, gate)]
        with torch.autocast("cpu", torch.bfloat16):
            assert swiglu_mixture(x, gate_up, down, expert, gate).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 24, dtype=torch.float64)}, TypeError, "x: got dtype torch.float64"),
        ({"x": torch.zeros(3, 25)}, ValueError, r"gate_up: got shape \(4, 40, 24\), expected \(4, 40, 25\)"),
        ({"down": torch.zeros(3, 24, 20)}, ValueError, r"down: got shape \(3, 24, 20\), expected \(4, 24, 20\)"),
        ({"down": torch.zeros(4, 24, 20).bfloat16()}, TypeError, "down: got dtype torch.bfloat16"),
        ({"down": torch.zeros(4, 20, 24).mT}, ValueError, "down: .* is not contiguous"),
        ({"gate": torch.zeros(3, 1)}, ValueError, r"gate: got shape \(3, 1\), expected \(3, 2\)"),
        ({"expert": torch.zeros(3, 2, dtype=torch.int32)}, TypeError, "expert: got dtype torch.int32"),
        ({"expert": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"expert: got shape \(2, 2\)"),
        ({"gate_up": torch.zeros(40, 24)}, ValueError, "x, expert, gate_up: got shapes"),
        ({"gate": torch.zeros(3, 2, device="meta")}, ValueError, "gate: on meta, but x is on cpu"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    here = CASES["decoding"]
    inputs = {**dict(zip(("x", "gate_up", "down", "expert", "gate"), here.inputs, strict=True)), **change}
    with pytest.raises(error, match=message):
        swiglu_mixture(**inputs)


def test_layer_with_the_triton_backend_equals_the_reference() -> None:
    from dataclasses import replace

    from zoo.moe.routing import RoutingContext
    from zoo.moe.spec import MoESpec
    from zoo.spec import parse

    plain = {
        "type": "moe", "routed": 6, "experts": {"type": "swiglu", "hidden": 12}, "null_experts": {"zero": 1},
        "router": {"type": "top_k", "k": 3},
    }  # fmt: skip
    spec, found = parse(MoESpec, plain), []
    for backend in ("reference", "triton"):
        torch.manual_seed(0)
        layer = replace(spec, backend=backend).build(8)
        x = torch.randn(13, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = layer(x, RoutingContext(shape=(1, 13), mask=torch.ones(13, dtype=torch.bool))).y
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for got, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
