"""Task gradient: it reaches the router as declared, and every gradient is the derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.laws.cases import LayerCase, context, flat
from zoo.laws.law import close, law, require
from zoo.laws.probe import backward, target


def _reaches(case: LayerCase) -> bool:
    return case.spec.pool.experts > 1 and case.properties.task_gradient in ("exact", "partial")


def _sizes(case: LayerCase) -> Tensor:
    """[T] the size of the router's gradient from each token's own output."""
    layer, tokens = case.layer(), case.tokens()
    x = flat(tokens)
    out = layer(x, context(tokens))
    sizes = []
    for token in range(len(x)):
        only = torch.zeros(len(x), dtype=torch.bool).index_fill(0, torch.tensor([token]), True)
        total = target(out.y, x, only)
        found = torch.autograd.grad(total, list(layer.router.parameters()), retain_graph=True, allow_unused=True)
        sizes.append(sum(float(g.abs().sum()) for g in found if g is not None))
    return torch.tensor(sizes)


@law(
    "task_gradient exact or partial: the task loss of every token, or of some, reaches the router",
    LayerCase,
    _reaches,
)
def router(case: LayerCase) -> None:
    sizes = _sizes(case)
    without = int((sizes < 1e-9).sum())
    if case.properties.task_gradient == "exact":
        require(without == 0, f"{without} of {len(sizes)} tokens send no gradient to the router, declared exact")
    require(without < len(sizes), "no token sends a gradient to the router")


@law("every gradient is the derivative (float64, central differences)", LayerCase, _reaches)
def differences(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    x = flat(tokens).requires_grad_()
    ctx, start = context(tokens), flat(tokens).detach().clone()

    def total(x: Tensor) -> Tensor:
        return target(layer(x, ctx).y, start, ctx.mask)

    gradients, gradient_x = backward(layer, total(x), x)
    generator = torch.Generator().manual_seed(8)
    for name, parameter in [*layer.named_parameters(), ("input", x)]:
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        found = gradient_x if name == "input" else gradients[name]
        with torch.no_grad():
            parameter += 1e-6 * direction
            up = total(x)
            parameter -= 2e-6 * direction
            down = total(x)
            parameter += 1e-6 * direction
        close((found * direction).sum(), (up - down) / 2e-6, f"derivative along {name}", 1e-6)
