"""Compile: on the fixed-k path the graph never breaks, and compiled equals eager."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from zoo.laws.cases import LayerCase, TrunkCase, context, flat
from zoo.laws.law import LawBroken, all_close, close, law
from zoo.laws.probe import backward, target

Forward = Callable[[Tensor], Tensor]


def _fixed(case: LayerCase) -> bool:
    """Fixed-k layers but for the reference backend. Compiling takes a second, so only a few cases of each part are
    taken; balance rules are no part of the forward pass."""
    few = case.name.endswith("rich") or case.name.startswith(("expert", "shared", "null"))
    return (
        few
        and not case.spec.balance
        and case.properties.fixed_k
        and not case.properties.noise
        and case.spec.backend != "reference"
    )


def _compiled(function: Forward) -> Forward:
    torch.compiler.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@law("fixed k: compiles without a graph break, and compiled equals eager with its gradients", LayerCase, _fixed)
def layer(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    ctx = context(tokens)

    def forward(x: Tensor) -> Tensor:
        return layer(x, ctx).y

    found = []
    for function in (forward, _compiled(forward)):
        x = flat(tokens).detach().requires_grad_()
        y = _call(function, x)
        found.append((y.detach(), *backward(layer, target(y, x, ctx.mask), x)))
    (y, gradients, gradient_x), (y_2, gradients_2, gradient_x_2) = found
    close(y_2, y, "output")
    all_close(gradients_2, gradients, "gradient of")
    close(gradient_x_2, gradient_x, "gradient of the input")


def _fixed_trunk(case: TrunkCase) -> bool:
    return case.properties.fixed_k and not case.properties.noise and case.name.startswith(("block ", "ffn "))


@law("fixed k: a whole trunk compiles without a graph break, and compiled equals eager", TrunkCase, _fixed_trunk)
def trunk(case: TrunkCase) -> None:
    once = tuple(replace(layers, repeat=1) for layers in case.spec.layers)
    trunk, tokens = case.trunk(replace(case.spec, layers=once)), case.tokens()

    def forward(x: Tensor) -> Tensor:
        return trunk(tokens.replace(embedding=x)).tokens.embedding

    with torch.no_grad():
        close(_call(_compiled(forward), tokens.embedding), forward(tokens.embedding), "state")


def _call(function: Forward, x: Tensor) -> Tensor:
    try:
        return function(x)
    except torch._dynamo.exc.Unsupported as error:
        raise LawBroken(f"graph break: {str(error).splitlines()[0]}") from error
