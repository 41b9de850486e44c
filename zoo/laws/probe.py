"""Runs a layer and collects all that a law may compare: output, routing, statistics, losses and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.laws.cases import context, flat
from zoo.laws.law import close, require
from zoo.moe.balance.step import BalanceStep
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.stats import Stats


@dataclass(frozen=True)
class Run:
    """y [T, D]; gradients of a fixed function of y plus the balance losses, by parameter name and of the input."""

    y: Tensor
    routing: Routing
    stats: Stats
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]
    gradient_x: Tensor


def target(y: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """A scalar of the output whose weights follow from each real token's own input, not from its place."""
    weight = torch.cos(3 * x.detach().nan_to_num(0) + 1)
    return torch.where(mask, (y * weight).sum(-1), 0).sum()


def record_of(routing: Routing, stats: Stats, ctx: RoutingContext) -> LayerRecord:
    """The layer's record, as a block makes it."""
    return LayerRecord(routing, stats, ctx.shape, ctx.document, ctx.modality, weight=ctx.weight)


def balance_losses(layer: MoE, records: Sequence[LayerRecord]) -> dict[str, Tensor]:
    """The balance losses of one micro-batch that is the whole optimiser step."""
    step = BalanceStep([layer])
    step.add(records)
    return step.losses(records, 0)


def run(layer: MoE, tokens: Tokens, ctx: RoutingContext | None = None) -> Run:
    """One forward and backward pass over tokens [B, S, D]."""
    ctx = ctx or context(tokens)
    x = flat(tokens).detach().requires_grad_()
    out = layer(x, ctx)
    losses = balance_losses(layer, [record_of(out.routing, out.stats, ctx)])
    total = target(out.y, x, out.routing.mask) + sum(losses.values(), torch.zeros(()))
    gradients, gradient_x = backward(layer, total, x)
    return Run(out.y.detach(), out.routing, out.stats, losses, gradients, gradient_x)


def backward(layer: torch.nn.Module, total: Tensor, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of a scalar by parameter name and of x; zero where it does not depend on them."""
    named = dict(layer.named_parameters())
    if not total.requires_grad:
        return {name: torch.zeros_like(p) for name, p in named.items()}, torch.zeros_like(x)
    found = torch.autograd.grad(total, [*named.values(), x], allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip([*named.values(), x], found, strict=True)]
    return dict(zip(named, filled[:-1], strict=True)), filled[-1]


def take(tokens: Tokens, rows: slice = slice(None), columns: slice = slice(None)) -> Tokens:
    """Some rows and columns of token rows."""
    changes = {}
    for f in fields(tokens):
        value = getattr(tokens, f.name)
        if value is not None:
            changes[f.name] = value[rows] if f.name == "cond" else value[rows, columns]
    return tokens.replace(**changes)


def same_stats(got: Stats, expected: Stats) -> None:
    """Raises LawBroken where the statistics differ."""
    for name in ("load", "tokens", "kept", "null", "entropy"):
        close(getattr(got, name), getattr(expected, name), f"stats.{name}")


def same_routing(got: Routing, expected: Routing, rows: Tensor | slice = slice(None)) -> None:
    """Raises LawBroken where `got` at `rows` chose or weighed differently than `expected`."""
    require(
        torch.equal(got.expert[rows], expected.expert),
        f"expert: {int((got.expert[rows] != expected.expert).sum())} of {expected.expert.numel()} slots differ",
    )
    close(got.gate[rows], expected.gate, "gate")
