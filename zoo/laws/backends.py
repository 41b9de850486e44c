"""Backends: all compute what the readable one computes, activations kept or recomputed."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import get_args

import torch
from torch import Tensor

from zoo.laws.cases import DIM, LayerCase, context, flat
from zoo.laws.law import all_close, close, law, require
from zoo.laws.probe import run
from zoo.moe.experts.base import Backend
from zoo.moe.kernels import triton
from zoo.moe.routing import Rows


@law("all backends agree to 1e-5 in float32, forward and gradients, with and without recomputation", LayerCase)
def agree(case: LayerCase) -> None:
    tokens = case.tokens(dtype=torch.float32)
    mask = torch.ones(3, 5, dtype=torch.bool).index_fill(1, torch.tensor([2]), False)
    tokens = tokens.replace(mask=mask)
    reference = run(case.layer(replace(case.spec, backend="reference"), torch.float32), tokens)
    for backend, recompute in product(get_args(Backend), (False, True)):
        if backend == "triton" and not triton.available(torch.device("cpu")):
            continue
        spec = replace(case.spec, backend=backend, recompute=recompute)
        found = run(case.layer(spec, torch.float32), tokens)
        name = f"{backend}, recompute {recompute}"
        close(found.y, reference.y, f"{name}: output", 1e-5)
        all_close(found.gradients, reference.gradients, f"{name}: gradient of", 1e-5)
        close(found.gradient_x, reference.gradient_x, f"{name}: gradient of the input", 1e-5)


def _about_experts(case: LayerCase) -> bool:
    return bool(case.about & {"swiglu", "gelu"}) or case.name.startswith("expert ")


@law(
    "the experts' gradients pass gradcheck in float64; rows behind the last expert's are zero",
    LayerCase,
    _about_experts,
)
def gradcheck(case: LayerCase) -> None:
    experts = case.layer(replace(case.spec, backend="grouped")).experts
    counts = torch.zeros(case.spec.routed, dtype=torch.int64)
    counts[0], counts[-1] = 2, 3
    rows = int(counts.sum()) + 1
    ctx = context(case.tokens(1, rows))
    x = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(4), dtype=torch.float64).requires_grad_()

    def compute(x: Tensor, *_: Tensor) -> Tensor:
        gate = torch.ones(rows, dtype=torch.float64)
        return experts(Rows(x=experts.before(x), counts=counts, token=torch.arange(rows), gate=gate), ctx)

    tail = compute(x)[-1]
    close(tail, torch.zeros_like(tail), "row behind the last expert's", 0)
    passed = torch.autograd.gradcheck(
        compute, (x, *experts.parameters()), fast_mode=True, raise_exception=False, atol=1e-6
    )
    require(passed, "gradcheck failed")


def _derives(case: LayerCase) -> bool:
    return _about_experts(case) and case.properties.task_gradient != "estimator"


@law("the whole layer's gradients pass gradcheck in float64 on the fused backend", LayerCase, _derives)
def fused(case: LayerCase) -> None:
    layer = case.layer(replace(case.spec, backend="fused", policy=()))
    tokens = case.tokens(2, 3)
    ctx = context(tokens)

    def compute(x: Tensor, *_: Tensor) -> Tensor:
        return layer(x, ctx).y

    x = flat(tokens).detach().requires_grad_()
    parameters = [p for p in layer.parameters() if p.requires_grad]
    passed = torch.autograd.gradcheck(compute, (x, *parameters), fast_mode=True, raise_exception=False, atol=1e-6)
    require(passed, "gradcheck failed")
