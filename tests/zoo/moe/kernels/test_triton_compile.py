"""Every kernel goes through Triton's compiler and ptxas for Hopper, which needs no GPU: what the interpreter lets pass
but the compiler does not, pipelines that do not fit into shared memory, tensor cores left unused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.moe.kernels.triton.settings import SHARED_MEMORY, tiling

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}


class Compiler:
    """Stands where a kernel does: a launch compiles it for these arguments and remembers the result."""

    def __init__(self, kernel: Any, results: list[Any]) -> None:
        self.kernel, self.results = kernel, results

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, *args: Any, num_warps: int, num_stages: int = 3, **constants: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget

        given = dict(zip(self.kernel.arg_names, args, strict=False))
        constants |= {name: value for name, value in given.items() if value is None}
        signature, attributes = dict.fromkeys(self.kernel.arg_names, "constexpr"), {}
        for i, (name, value) in enumerate(given.items()):
            if isinstance(value, torch.Tensor):
                signature[name], attributes[(i,)] = "*" + TYPES[value.dtype], [["tt.divisibility", 16]]
            elif value is not None:
                signature[name] = "i32"
        source = triton.compiler.ASTSource(self.kernel, signature, constants, attributes)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        self.results.append(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What launches compile to, in order."""
    from zoo.moe.kernels.triton import hidden_grad, outer, plan, scatter, up

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    results: list[Any] = []
    kernels = [(up, "up"), (scatter, "scatter"), (scatter, "sum"), (hidden_grad, "hidden_grad"), (outer, "outer")]
    for module, name in [*kernels, (plan, "plan")]:
        monkeypatch.setattr(module, f"{name}_kernel", Compiler(getattr(module, f"{name}_kernel"), results))
    return results


@pytest.mark.parametrize(
    ("tokens", "dtype", "dim", "hidden"),
    [
        (1, torch.bfloat16, 2048, 1408),
        (32, torch.bfloat16, 2048, 1408),
        (64, torch.bfloat16, 2048, 1408),
        (32, torch.float32, 512, 256),
        (32, torch.bfloat16, 33, 65),
    ],
)
def test_kernels_compile_for_hopper(
    tokens: int, dtype: torch.dtype, dim: int, hidden: int, compiled: list[Any]
) -> None:
    from zoo.moe.kernels.triton import hidden_grad, outer, plan, scatter, up

    experts, slots = 4, 8
    cut = tiling(tokens * slots, experts, dtype)
    with torch.device("meta"):
        expert, gate = torch.empty(tokens, slots, dtype=torch.int64), torch.empty(tokens, slots)
        rows = plan.Plan(*plan._plan_small(expert, experts, cut.rows))
        x, gate_up = torch.empty(tokens, dim, dtype=dtype), torch.empty(experts, 2 * hidden, dim, dtype=dtype)
        down = torch.empty(experts, dim, hidden, dtype=dtype)
        for keep in (False, True):
            h, pre = up.up(x, gate_up, rows, slots, cut.rows, cut.up, hidden=True, preact=keep)
        scatter.scatter_sum(h, down, gate, expert, rows, cut.rows, cut.scatter, transposed=False)
        scatter.scatter_sum(pre, gate_up, None, expert, rows, cut.rows, cut.scatter, transposed=True)
        hidden_grad.hidden_grad(x, down, pre, gate, rows, cut.rows, cut.hidden)
        for transposed in (False, True):
            outer.outer(h, x, rows, slots, cut.outer, transposed=transposed)
    assert max(kernel.metadata.shared for kernel in compiled) <= SHARED_MEMORY + 1024
    products = [kernel.asm["ptx"] for kernel in compiled if kernel.metadata.name not in ("plan_kernel", "sum_kernel")]
    assert len(products) == 7
    if dtype == torch.bfloat16:
        core = "mma.sync" if cut.rows == 16 else "wgmma.mma_async"
        assert all(core in ptx for ptx in products[:5])
