"""Task gradient: it reaches the router as declared, and every gradient is the derivative."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.laws.cases import LayerCase, context, flat
from zoo.laws.law import close, law, require
from zoo.laws.probe import backward, target


def _reaches(case: LayerCase) -> bool:
    return case.spec.pool.experts > 1 and case.properties.task_gradient in ("exact", "partial")


def _sizes(case: LayerCase, tokens: Tokens, exclude: Tensor | None = None) -> Tensor:
    """[T] the size of the router's gradient from each token's own output; NaN where the choice was cut short."""
    layer, x = case.layer(), flat(tokens)
    out = layer(x, context(tokens, exclude=exclude))
    sizes = []
    for token in range(len(x)):
        only = torch.zeros(len(x), dtype=torch.bool).index_fill(0, torch.tensor([token]), True)
        total = target(out.y, x, only)
        found = torch.autograd.grad(total, list(layer.router.parameters()), retain_graph=True, allow_unused=True)
        sizes.append(sum(float(g.abs().sum()) for g in found if g is not None))
    return torch.tensor(sizes).where(out.routing.full.all(-1) | (exclude is None), torch.nan)


def _every_choice(case: LayerCase) -> tuple[Tokens, Tensor]:
    """One token for each set of k experts it may end up with, and the experts that leave it no other."""
    experts = case.spec.pool.experts
    slots = case.layer().router(flat(case.tokens()), context(case.tokens())).expert.shape[1]
    sets = list(itertools.islice(itertools.combinations(range(experts), slots), 80))
    exclude = torch.ones(len(sets), experts, dtype=torch.bool)
    for row, chosen in enumerate(sets):
        exclude[row, list(chosen)] = False
    return case.tokens(1, len(sets)), exclude


@law(
    "task_gradient exact or partial: the task loss of every token, or of some, reaches the router",
    LayerCase,
    _reaches,
)
def router(case: LayerCase) -> None:
    sizes = _sizes(case, case.tokens())
    without = int((sizes < 1e-9).sum())
    if case.properties.task_gradient == "exact":
        require(without == 0, f"{without} of {len(sizes)} tokens send no gradient to the router, declared exact")
    require(without < len(sizes), "no token sends a gradient to the router")


def _exact_fixed(case: LayerCase) -> bool:
    return _reaches(case) and case.properties.fixed_k and case.properties.task_gradient == "exact"


@law("task_gradient exact at fixed k: it reaches the router whichever experts a token has", LayerCase, _exact_fixed)
def any_choice(case: LayerCase) -> None:
    tokens, exclude = _every_choice(case)
    sizes = _sizes(case, tokens, exclude)
    silent = (~exclude)[sizes < 1e-9]
    experts = [row.nonzero().flatten().tolist() for row in silent]
    require(not experts, f"tokens on experts {experts[:3]} send no gradient to the router, declared exact")


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
            parameter.add_(direction, alpha=1e-6)
            up = total(x)
            parameter.sub_(direction, alpha=2e-6)
            down = total(x)
            parameter.add_(direction, alpha=1e-6)
        close((found * direction).sum(), (up - down) / 2e-6, f"derivative along {name}", 1e-6)
