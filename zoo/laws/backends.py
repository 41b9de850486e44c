"""Backends: the grouped one computes what the readable one computes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zoo.laws.cases import DIM, LayerCase, context
from zoo.laws.law import all_close, close, law, require
from zoo.laws.probe import run
from zoo.moe.routing import Rows


@law("reference and grouped agree to 1e-5 in float32, forward and gradients", LayerCase)
def agree(case: LayerCase) -> None:
    tokens = case.tokens(dtype=torch.float32)
    mask = torch.ones(3, 5, dtype=torch.bool).index_fill(1, torch.tensor([2]), False)
    tokens = tokens.replace(mask=mask)
    found = []
    for backend in ("reference", "grouped"):
        layer = case.layer(replace(case.spec, backend=backend), torch.float32)
        found.append(run(layer, tokens))
    reference, grouped = found
    close(grouped.y, reference.y, "output", 1e-5)
    all_close(grouped.gradients, reference.gradients, "gradient of", 1e-5)
    close(grouped.gradient_x, reference.gradient_x, "gradient of the input", 1e-5)


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
        return experts(Rows(x=x, counts=counts, token=torch.arange(rows), gate=gate), ctx)

    tail = compute(x)[-1]
    close(tail, torch.zeros_like(tail), "row behind the last expert's", 0)
    passed = torch.autograd.gradcheck(
        compute, (x, *experts.parameters()), fast_mode=True, raise_exception=False, atol=1e-6
    )
    require(passed, "gradcheck failed")
