"""Latent experts: parameter counts by formula, equality with plain experts of the product maps, shared gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.backbone.trunk import BackboneSpec
from zoo.moe.experts.ffn import SwiGLUExperts, SwiGLUSpec
from zoo.moe.experts.latent import LatentExperts, LatentSpec
from zoo.moe.layer import MoE
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import SpecError, dump, parse

DIM = 16
FORMS = list(product([1, 2, 4], ["separate", "joint"], ["kept", "factored"]))


def spec(backend: str = "fused", k: int = 3, **keys: Any) -> MoESpec:
    experts = {"type": "latent", "hidden": 6, "latent": 4, "larger": True, **keys}
    plain = {"routed": 4, "experts": experts, "router": {"type": "top_k", "k": k}, "backend": backend}
    return parse(MoESpec, plain)


def build(described: MoESpec, dim: int = DIM) -> MoE:
    torch.manual_seed(3)
    return MoE(described, dim).double()


def context(tokens: int) -> RoutingContext:
    return RoutingContext(shape=(1, tokens), mask=torch.ones(tokens, dtype=torch.bool))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def plain_twin(layer: MoE) -> MoE:
    """The same layer with plain experts whose maps are the products of the latent ones."""
    experts = layer.experts
    assert isinstance(experts, LatentExperts)
    twin = build(replace(layer.spec, experts=SwiGLUSpec(hidden=6)))
    twin.router.load_state_dict(layer.router.state_dict())
    assert isinstance(twin.experts, SwiGLUExperts)
    with torch.no_grad():
        for e in range(4):
            group = e // experts.size
            into = experts.into[group]
            for_gate, for_up = (into, into) if experts.joint else into.chunk(2)
            twin.experts.gate_up[e] = torch.cat([experts.gate[e] @ for_gate, experts.up[e] @ for_up])
            out_of = torch.eye(DIM).double() if experts.out_of is None else experts.out_of[group]
            twin.experts.down[e] = out_of @ experts.down[e]
    return twin


@pytest.mark.parametrize(("group", "inputs", "down"), FORMS)
def test_equal_to_plain_experts_of_the_product_maps(group: int, inputs: str, down: str) -> None:
    x = torch.randn(9, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for backend in ("fused", "reference"):
        layer = build(spec(backend, group=group, inputs=inputs, down=down))
        expected = plain_twin(layer)(x, context(9)).y
        torch.testing.assert_close(layer(x, context(9)).y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("down", "expected", "plain"),
    [("factored", 36_864, 49_152), ("kept", 40_960, 49_152)],
)
def test_parameters_follow_the_formula(down: str, expected: int, plain: int) -> None:
    n, m, experts, group = 64, 32, 8, 4
    described = LatentSpec(hidden=m, latent=m, group=group, down=down)  # type: ignore[arg-type]
    assert count(described.build(n, experts, "fused")) == expected
    assert described.layer_cost(n, experts, 2).total == expected
    formula = m / n + 1 / group
    assert expected / plain == pytest.approx(formula if down == "factored" else 1 / 3 + 2 / 3 * formula)


@pytest.mark.parametrize(
    ("shape", "group", "ratio"),
    [
        ((2048, 1408, 60), 60, (0.704, 0.803)),
        ((2048, 1408, 60), 10, (0.788, 0.858)),
        ((7168, 2048, 256), 256, (0.290, 0.526)),
    ],
)
def test_published_shapes(shape: tuple[int, int, int], group: int, ratio: tuple[float, float]) -> None:
    n, m, experts = shape
    for down, expected in zip(("factored", "kept"), ratio, strict=True):
        described = LatentSpec(hidden=m, latent=m, group=group, down=down)  # type: ignore[arg-type]
        assert described.layer_cost(n, experts, 1).total / (3 * n * m * experts) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("group", "inputs", "down"), FORMS)
def test_cost_is_that_of_the_module(group: int, inputs: str, down: str) -> None:
    described = spec(group=group, inputs=inputs, down=down)
    assert described.cost(DIM).total == count(build(described))
    every = described.experts.layer_cost(DIM, 4, 4)
    assert every.active == every.total
    assert every.flops == 2 * every.total


def test_operations_are_those_of_cores_and_touched_groups() -> None:
    n, m = 64, 16
    described = LatentSpec(hidden=m, latent=m, group=4, down="factored")
    one = described.layer_cost(n, 8, 1)
    assert one.flops == 2 * 3 * (m * m + m * n)
    two = described.layer_cost(n, 8, 2)  # the second expert lies in the other group in 4 of 7 cases
    assert two.flops == pytest.approx(2 * 3 * (2 * m * m + (1 + 4 / 7) * m * n))


def test_a_latent_is_computed_once_for_each_token_and_touched_group() -> None:
    layer = build(spec(group=2, k=3, down="factored"))
    experts, seen = layer.experts, []
    inner = experts.linear

    def watch(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        seen.append((weight.shape, int(counts.sum())))
        return inner(x, weight, counts)

    experts.linear = watch
    x = torch.randn(11, DIM, dtype=torch.float64)
    routing = layer(x, context(11)).routing
    pairs = sum(len({e // 2 for e in row}) for row in routing.expert.tolist())
    rows = dict(seen)
    assert isinstance(experts, LatentExperts) and experts.out_of is not None
    assert rows[experts.into.shape] == rows[experts.out_of.shape] == pairs < 33
    assert rows[experts.gate.shape] == 33


def test_latents_travel_where_all_experts_share_one_group() -> None:
    layer = build(spec(down="factored"))
    x = torch.randn(5, DIM, dtype=torch.float64)
    handle = layer.start(x, layer.route(x, context(5)), context(5))
    assert handle.rows is not None and handle.rows.x.shape == (15, 8)  # two latents of 4, not 16
    assert layer.experts.width == 4


def test_shared_maps_learn_from_every_expert_of_their_group() -> None:
    layer = build(spec(group=2, k=2))
    x = torch.randn(1, DIM, dtype=torch.float64)
    gradients = []
    for barred in ([2, 3], [0, 1]):
        exclude = torch.zeros(1, 4, dtype=torch.bool)
        exclude[0, barred] = True
        layer.zero_grad()
        layer(x, context(1).replace(exclude=exclude)).y.sum().backward()
        assert isinstance(layer.experts, LatentExperts) and layer.experts.into.grad is not None
        gradients.append(layer.experts.into.grad.clone())
    assert gradients[0][0].any() and not gradients[0][1].any()
    assert gradients[1][1].any() and not gradients[1][0].any()


def test_initial_outputs_have_the_variance_of_plain_maps() -> None:
    torch.manual_seed(0)
    experts = LatentSpec(hidden=64, latent=32, larger=True).build(256, 1, "fused")
    assert float((experts.gate[0] @ experts.into[0, :32]).detach().var()) * 256 == pytest.approx(1, rel=0.1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SpecError, match=r"experts\.group: 4 experts do not divide into groups of 3"):
        spec(group=3)
    with pytest.raises(ValueError, match=r"latent: .* plain ones .* larger: true"):
        spec(group=1, latent=6, larger=False).check(DIM)
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": {"type": "moe", **dump(spec(larger=False))}}
    with pytest.raises(SpecError, match=r"layers\[0\]\.block\.ffn\.experts\.latent: "):
        parse(BackboneSpec, {"dim": 4, "layers": [{"block": block}]})
    with pytest.raises(SpecError, match=r"experts\.latent: got 0"):
        spec(latent=0)
