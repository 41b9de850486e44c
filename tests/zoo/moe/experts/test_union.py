"""Slices of one network: together they are it, some are it with the others cut off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.moe.experts.union import UnionExperts
from zoo.moe.layer import MoE
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import parse

DIM, SLICES, HIDDEN = 8, 4, 3


def build(**router: Any) -> MoE:
    plain = {
        "routed": SLICES, "experts": {"type": "union", "hidden": HIDDEN, "bias": True}, "out_bias": True,
        "router": {"type": "expert_choice", "weight": "unit", **router}, "allow_future": True,
    }  # fmt: skip
    torch.manual_seed(1)
    layer = MoE(parse(MoESpec, plain), DIM).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


def context(rows: int, length: int, mask: Tensor | None = None) -> RoutingContext:
    real = torch.ones(rows * length, dtype=torch.bool) if mask is None else mask.flatten()
    return RoutingContext(shape=(rows, length), mask=real)


def dense(layer: MoE, kept: tuple[int, ...] = tuple(range(SLICES))) -> nn.Sequential:
    """The whole network, with the columns of `down` that belong to other slices set to zero."""
    experts = layer.experts
    assert isinstance(experts, UnionExperts) and experts.up_bias is not None and layer.out_bias is not None
    network = nn.Sequential(nn.Linear(DIM, SLICES * HIDDEN), nn.GELU(), nn.Linear(SLICES * HIDDEN, DIM)).double()
    down = experts.down.detach() * torch.tensor([e in kept for e in range(SLICES)])[:, None, None]
    maps = (experts.up.flatten(0, 1), experts.up_bias.flatten(), down.transpose(0, 1).flatten(1), layer.out_bias)
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), maps, strict=True):
            parameter.copy_(value)
    return network


def test_all_slices_on_all_tokens_are_the_dense_network_with_its_gradients() -> None:
    layer = build(share=1.0)
    network = dense(layer)
    x = torch.randn(2, 5, DIM, dtype=torch.float64, requires_grad=True)
    y, expected = layer(x, context(2, 5)).y, network(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(y)
    experts = layer.experts
    assert isinstance(experts, UnionExperts) and experts.up_bias is not None and layer.out_bias is not None
    inputs = [x, experts.up, experts.up_bias, experts.down, layer.out_bias]
    found = torch.autograd.grad((y * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *network.parameters()])
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1].flatten(0, 1), wanted[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[2].flatten(), wanted[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[3].transpose(0, 1).flatten(1), wanted[3], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[4], wanted[4], rtol=0, atol=1e-12)


def test_some_slices_are_the_dense_network_without_the_others() -> None:
    layer = build(share=1.0)
    x = torch.randn(6, DIM, dtype=torch.float64)
    parts = []
    for kept in ((0, 2), (1, 3), (), (3,)):
        exclude = torch.tensor([e not in kept for e in range(SLICES)]).expand(6, -1)
        y = layer(x, context(1, 6).replace(exclude=exclude)).y
        torch.testing.assert_close(y, dense(layer, kept)(x), rtol=0, atol=1e-12)
        parts.append(y)
    whole = layer(x, context(1, 6)).y
    torch.testing.assert_close(parts[0] + parts[1] - parts[2], whole, rtol=0, atol=1e-12)  # the bias stands in each


def test_selected_tokens_are_rows_of_the_dense_network() -> None:
    """Each token gets the slices that took it, at its own place."""
    layer = build(share=0.5, offers=2)
    x = torch.randn(12, DIM, dtype=torch.float64)
    out = layer(x, context(2, 6))
    chosen = [tuple(e for e in row if e < SLICES) for row in out.routing.expert.tolist()]
    assert len(set(chosen)) > 2
    for row, kept in enumerate(chosen):
        torch.testing.assert_close(out.y[row], dense(layer, kept)(x[row]), rtol=0, atol=1e-12)


def test_operations_are_the_share_of_the_dense_network() -> None:
    """Half of the tokens for every slice, or half of the slices for every token: half of the products."""
    whole = build(share=1.0).spec.experts.cost(DIM).flops * SLICES
    taken = build(share=0.5).spec
    chosen = parse(MoESpec, {"routed": SLICES, "experts": {"type": "union", "hidden": HIDDEN},
                             "router": {"type": "sequence_choice", "k": 2}, "allow_future": True})  # fmt: skip
    for spec in (taken, chosen):
        gate = spec.router.cost(DIM, spec.pool).flops
        assert spec.cost(DIM).flops - gate == whole / 2


def test_slices_are_drawn_as_their_network() -> None:
    torch.manual_seed(0)
    spec = parse(MoESpec, {"routed": 4, "experts": {"type": "union", "hidden": 256}, "router": {"type": "top_k"}})
    down = MoE(spec, 64).experts.down
    assert isinstance(down, Tensor) and abs(float(down.detach().std()) * 1024**0.5 - 1) < 0.02
