"""The compiled kernels on a GPU: agreement with float64, no host synchronisation, CUDA graphs, Inductor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.moe.kernels.triton import available, swiglu_mixture

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not available(DEVICE), reason="needs Triton and a GPU of Hopper's size"
)


def inputs(tokens: int, slots: int, experts: int, dim: int, hidden: int, dtype: torch.dtype) -> list[Tensor]:
    """x, gate_up, down, expert (some ids >= experts), gate."""
    draw = torch.Generator(DEVICE).manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        value = torch.randn(shape, generator=draw, device=DEVICE) * shape[-1] ** -0.5
        return value.to(dtype).requires_grad_()

    expert = torch.randint(experts + 1, (tokens, slots), generator=draw, device=DEVICE)
    gate = torch.rand(tokens, slots, generator=draw, device=DEVICE).requires_grad_()
    return [leaf(tokens, dim), leaf(experts, 2 * hidden, dim), leaf(experts, dim, hidden), expert, gate]


def exact(x: Tensor, gate_up: Tensor, down: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
    """The mixture in float64, expert by expert."""
    y = torch.zeros_like(x)
    for i in range(len(gate_up)):
        token, slot = (expert == i).nonzero(as_tuple=True)
        first, second = F.linear(x[token], gate_up[i]).chunk(2, dim=-1)
        y = y.index_add(0, token, F.linear(F.silu(first) * second, down[i]) * gate[token, slot, None])
    return y


def leaves(given: list[Tensor]) -> list[Tensor]:
    return [tensor for tensor in given if tensor.requires_grad]


def results(given: list[Tensor], y: Tensor) -> Iterator[Tensor]:
    """y and its gradients under a fixed projection."""
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y)
    yield y
    yield from torch.autograd.grad((y * weight).sum(), leaves(given))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    "shape",
    [(1, 2, 8, 256, 128), (40, 4, 8, 256, 384), (300, 2, 5, 132, 100), (2048, 2, 8, 512, 384), (700, 8, 64, 256, 128)],
)
def test_forward_and_gradients_agree_with_float64(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, bound: float
) -> None:
    given = inputs(*shape, dtype)
    doubled = [tensor.detach().double().requires_grad_() if tensor.requires_grad else tensor for tensor in given]
    pairs = zip(results(given, swiglu_mixture(*given)), results(doubled, exact(*doubled)), strict=True)
    for got, want in pairs:
        assert float((got.double() - want).norm() / want.norm().clamp_min(1e-30)) < bound


@pytest.mark.parametrize("tokens", [4, 1000])
def test_nothing_waits_for_the_device(tokens: int) -> None:
    given = inputs(tokens, 2, 8, 256, 128, torch.bfloat16)
    swiglu_mixture(*given).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        swiglu_mixture(*given).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tokens", [4, 1000])
def test_a_captured_graph_follows_its_inputs(tokens: int) -> None:
    given = [tensor.detach() for tensor in inputs(tokens, 2, 8, 256, 128, torch.bfloat16)]
    swiglu_mixture(*given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = swiglu_mixture(*given)
    for shift in (1, 3):
        given[0].normal_()
        given[3].add_(shift).remainder_(9)
        graph.replay()
        assert torch.equal(y, swiglu_mixture(*given))


def test_compiled_equals_eager() -> None:
    given = inputs(200, 2, 8, 256, 128, torch.float32)
    compiled = torch.compile(swiglu_mixture, fullgraph=True)
    for got, want in zip(results(given, compiled(*given)), results(given, swiglu_mixture(*given)), strict=True):
        torch.testing.assert_close(got, want)
