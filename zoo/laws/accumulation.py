"""Accumulation: what a balance rule computes over micro-batches, by its scope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from zoo.laws.cases import LayerCase, context, flat
from zoo.laws.law import all_close, close, law, require
from zoo.laws.probe import record_of, take
from zoo.moe.balance.step import BalanceStep
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord


def _has(*scopes: str | None) -> Callable[[LayerCase], bool]:
    """Whether the layer has rules, all with a loss of one of these scopes (None: a sum over tokens)."""
    return lambda case: (
        bool(case.spec.balance)
        and all(
            getattr(rule, "scope", rule.wider_scope()) in scopes and not rule.needs_bias for rule in case.spec.balance
        )
    )


def records(layer: MoE, case: LayerCase, bounds: list[int]) -> list[LayerRecord]:
    """Records of the rows of one batch of four, cut at `bounds`; the last row is half padding."""
    tokens = case.tokens(4, 6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[3, 3:] = False
    tokens = tokens.replace(mask=mask)
    found = []
    for start, stop in zip([0, *bounds], [*bounds, 4], strict=True):
        piece = take(tokens, slice(start, stop))
        ctx = context(piece)
        out = layer(flat(piece), ctx)
        found.append(record_of(out.routing, out.stats, ctx))
    return found


def gradients(layer: MoE, total: Tensor) -> dict[str, Tensor]:
    """Of the router's parameters."""
    named = dict(layer.router.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


def whole_step(case: LayerCase, bounds: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and router gradients of an optimiser step over micro-batches, all counted first."""
    layer = case.layer()
    pieces = records(layer, case, bounds)
    step = BalanceStep([layer], exact=True)
    for piece in pieces:
        step.add([piece])
    losses = [sum(step.losses([piece], 0).values(), torch.zeros(())) for piece in pieces]
    total = torch.stack([v.double() for v in losses]).sum()
    return total.detach(), gradients(layer, total)


@law(
    "scopes sequence and global_exact: micro-batches give the loss and gradient of the whole batch",
    LayerCase,
    _has("sequence", "global_exact", None),
)
def exact(case: LayerCase) -> None:
    whole, gradient = whole_step(case, [])
    for bounds in ([1], [2, 3]):
        split, split_gradient = whole_step(case, bounds)
        close(split, whole, f"loss over micro-batches cut at rows {bounds}")
        all_close(split_gradient, gradient, "gradient of router")


@law("scope global: the last micro-batch sees the counts of the whole optimiser step", LayerCase, _has("global"))
def last(case: LayerCase) -> None:
    layer = case.layer()
    pieces = records(layer, case, [1, 2])
    growing, exact = BalanceStep([layer]), BalanceStep([layer], exact=True)
    for piece in pieces:
        exact.add([piece])
        growing.add([piece])
        now = growing.losses([piece], 0)
    all_close(now, exact.losses([pieces[-1]], 0), "loss of the last micro-batch")


@law("scope micro: other micro-batches change nothing", LayerCase, _has("micro"))
def micro(case: LayerCase) -> None:
    layer = case.layer()
    pieces = records(layer, case, [1, 2])
    step, alone = BalanceStep([layer]), BalanceStep([layer])
    for piece in pieces:
        step.add([piece])
    alone.add([pieces[-1]])
    all_close(step.losses([pieces[-1]], 0), alone.losses([pieces[-1]], 0), "loss")


def _widens(case: LayerCase) -> bool:
    return any(rule.wider_scope() for rule in case.spec.balance)


@law("one micro-batch on one rank: the wider scopes equal scope micro", LayerCase, _widens)
def single(case: LayerCase) -> None:
    layer = case.layer()
    pieces = records(layer, case, [])
    narrow = [replace(r, scope="micro") if r.wider_scope() else r for r in case.spec.balance]  # type: ignore[call-arg]
    found = []
    for rules in (case.spec.balance, tuple(narrow)):
        layer.spec = replace(case.spec, balance=rules)
        step = BalanceStep([layer])
        step.add(pieces)
        found.append(step.losses(pieces, 0))
    all_close(found[0], found[1], "loss")


@law(
    "the selection bias moves the same however the optimiser step was cut, once, and counting starts anew",
    LayerCase,
    lambda case: any(rule.needs_bias for rule in case.spec.balance),
)
def bias(case: LayerCase) -> None:
    after = []
    for bounds in ([], [1], [2, 3]):
        layer = case.layer()
        step = BalanceStep([layer])
        for piece in records(layer, case, bounds):
            step.add([piece])
        step.finish(0)
        moved = layer.router.bias
        assert moved is not None
        after.append(moved.clone())
        step.finish(0)  # nothing was counted since
        close(moved, after[-1], "bias after a step without tokens", 0)
    require(not torch.equal(after[0], case.layer().router.bias), "bias: did not move")  # type: ignore[arg-type]
    for other in after[1:]:
        close(other, after[0], "bias", 1e-7)


def _runs(case: LayerCase) -> bool:
    try:
        return bool(records(case.layer(), case, [])[0].routing.update)
    except Exception:  # a layer that cannot run breaks the other laws
        return False


@law("running statistics move the same however the optimiser step was cut, and only when it ends", LayerCase, _runs)
def running(case: LayerCase) -> None:
    start, after = dict(case.layer().router.named_buffers()), []
    for bounds in ([], [1], [2, 3]):
        layer = case.layer()
        step = BalanceStep([layer])
        for piece in records(layer, case, bounds):
            step.add([piece])
        all_close(dict(layer.router.named_buffers()), start, "before the step ends: router", 0)
        step.finish(0)
        after.append({name: value.clone() for name, value in layer.router.named_buffers()})
    require(any(not torch.equal(after[0][name], start[name]) for name in start), "running statistics: did not move")
    for other in after[1:]:
        all_close(other, after[0], "router", 1e-6)
