"""The fused CPU kernel against plain operators: every activation, biases, one token, slots that hold no expert."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.moe.glu import GLUSpec
from zoo.moe.kernels import activations, cpu, products
from zoo.moe.kernels.activations import Activation
from zoo.moe.kernels.plan import Chunk

R, K, D, F = 4, 2, 5, 3
GATED = {
    "silu": GLUSpec(hidden=F),
    "gelu": GLUSpec(hidden=F, activation="gelu"),
    "gelu_tanh": GLUSpec(hidden=F, activation="gelu_tanh"),
    "relu": GLUSpec(hidden=F, activation="relu"),
    "gpt-oss": GLUSpec(hidden=F, alpha=1.702, limit=0.5, offset=1.0),
}


def draw(tokens: int, width: int, *, bias: bool) -> dict[str, Any]:
    """Float64 arguments of a layer of inner width `width`; the last id is a slot without an expert."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    expert = torch.stack([torch.randperm(R + 1, generator=generator)[:K] for _ in range(tokens)])
    return {
        "x": normal(tokens, D),
        "up": normal(R, width, D),
        "down": normal(R, D, F),
        "expert": expert,
        "gate": normal(tokens, K),
        "up_bias": normal(R, width) if bias else None,
        "down_bias": normal(R, D) if bias else None,
    }


def plainly(activation: GLUSpec | str, x, up, down, expert, gate, up_bias, down_bias) -> Tensor:  # type: ignore[no-untyped-def]
    """One slot after the other."""
    rows = []
    for token in range(len(x)):
        y = torch.zeros(D, dtype=x.dtype)
        for e, weight in zip(expert[token].tolist(), gate[token], strict=True):
            if e < R:
                inner = up[e] @ x[token] + (0 if up_bias is None else up_bias[e])
                a = activation.gated(inner) if isinstance(activation, GLUSpec) else _one(activation, inner)
                y = y + weight * (down[e] @ a + (0 if down_bias is None else down_bias[e]))
        rows.append(y)
    return torch.stack(rows)


def _one(name: str, inner: Tensor) -> Tensor:
    approximate = "tanh" if name == "gelu_tanh" else "none"
    return {"silu": torch.nn.functional.silu, "relu": torch.relu}.get(
        name, lambda v: torch.nn.functional.gelu(v, approximate=approximate)
    )(inner)


def check(activation: GLUSpec | str, kernel: Activation, width: int, tokens: int, bias: bool, recompute: bool) -> None:
    """Output and all gradients, with autograd and without."""
    given = draw(tokens, width, bias=bias)
    learned = [t for t in given.values() if t is not None and t.requires_grad]
    expected = plainly(activation, **given)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, learned, upstream)
    x, up, down, expert, gate = (given.pop(name) for name in ("x", "up", "down", "expert", "gate"))
    y = cpu.mixture(x, up, down, expert, gate, kernel, recompute=recompute, **given)
    found = torch.autograd.grad(y, learned, upstream)
    for got, want in zip([y, *found], [expected, *wanted], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(
            cpu.mixture(x, up, down, expert, gate, kernel, **given),
            expected,
            rtol=1e-10,
            atol=1e-12,
        )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("name", GATED)
def test_gated_networks_equal_plain_operators(name: str, tokens: int, bias: bool, recompute: bool) -> None:
    spec = GATED[name]
    kernel = activations.gated(spec.activation, spec.alpha, spec.limit, spec.offset)
    check(spec, kernel, 2 * F, tokens, bias, recompute)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu"])
def test_plain_networks_equal_plain_operators(name: str, tokens: int, bias: bool) -> None:
    check(name, activations.elementwise(name), F, tokens, bias, recompute=False)


@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck_with_and_without_bias(bias: bool) -> None:
    given = draw(6, 2 * F, bias=bias)
    kernel = activations.gated("silu", 1.702, 0.7, 1.0)
    expert = given.pop("expert")
    assert expert is not None

    def compute(x: Tensor, up: Tensor, down: Tensor, gate: Tensor, *biases: Tensor) -> Tensor:
        more: dict[str, Any] = dict(zip(("up_bias", "down_bias"), biases, strict=False))
        return cpu.mixture(x, up, down, expert, gate, kernel, **more)

    assert torch.autograd.gradcheck(compute, tuple(t for t in given.values() if t is not None))


def test_gradients_only_where_wanted() -> None:
    given = draw(5, 2 * F, bias=True)
    for name in ("up", "down", "up_bias"):
        given[name] = given[name].detach()
    x, up, down, expert, gate = (given.pop(name) for name in ("x", "up", "down", "expert", "gate"))
    y = cpu.mixture(x, up, down, expert, gate, activations.gated("silu"), **given)
    y.sum().backward()
    assert x.grad is not None and gate.grad is not None and given["down_bias"].grad is not None


@pytest.mark.parametrize("tokens", [1, 3])
def test_no_slot_holds_an_expert(tokens: int) -> None:
    given = draw(tokens, 2 * F, bias=True)
    x, up, down, _, gate = (given.pop(name) for name in ("x", "up", "down", "expert", "gate"))
    nobody = torch.full((tokens, K), R)
    with torch.no_grad():
        y = cpu.mixture(x, up, down, nobody, gate, activations.gated("silu"), **given)
    assert (y == 0).all()
    y = cpu.mixture(x, up, down, nobody, gate, activations.gated("silu"), **given)
    y.sum().backward()
    assert all(not t.grad.any() for t in (x, up, down, gate, *given.values()))


def test_products_that_are_cut_equal_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "WIDE", 4)
    monkeypatch.setattr(products, "DEEP", 3)
    monkeypatch.setattr(products, "MIDDLE", range(2, 4))
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(6, 8, generator=generator), torch.randn(R, 8, D, generator=generator)
    index = torch.arange(6)
    chunk = Chunk(expert=[0, 2, 3], count=[1, 3, 2], token=index, order=index)
    found = products.back(rows, weight, chunk, torch.full((6, D), torch.nan))
    expected = torch.einsum("no,noi->ni", rows, weight[torch.tensor([0, 2, 2, 2, 3, 3])])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
