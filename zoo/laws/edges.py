"""Edges: empty batches, single tokens and experts, everything on one expert or on null, masked rows, NaN."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.laws.cases import LayerCase, TrunkCase, context, flat
from zoo.laws.law import all_close, close, law, require
from zoo.laws.probe import Run, backward, run, take, target
from zoo.moe.spec import MoESpec


def _sound(got: Run, what: str) -> None:
    """Output, losses and gradients are finite."""
    named = {"output": got.y, "input gradient": got.gradient_x, **got.gradients, **got.losses}
    for name, value in named.items():
        require(bool(value.isfinite().all()), f"{what}: {name} is not finite")


@law("zero tokens and one token pass, with finite losses and gradients", LayerCase)
def few(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    for rows, columns in ((0, 5), (3, 0), (0, 0), (1, 1)):
        got = run(layer, take(tokens, slice(0, rows), slice(0, columns)))
        shape = (rows * columns, flat(tokens).shape[-1])
        require(tuple(got.y.shape) == shape, f"output of {rows} x {columns} tokens: shape {tuple(got.y.shape)}")
        _sound(got, f"{rows} x {columns} tokens")


def _changed(spec: MoESpec, **changes: object) -> MoESpec | None:
    """The spec with other numbers, or None where that is refused."""
    try:
        return replace(spec, **changes)  # type: ignore[arg-type]
    except ValueError:
        return None


def _single(case: LayerCase) -> MoESpec | None:
    router = case.spec.router
    for k in ({}, {"k": 1}):
        try:
            spec = _changed(case.spec, routed=1, router=replace(router, **k))
        except (TypeError, ValueError):
            continue
        if spec is not None:
            return spec
    return None


def _every(case: LayerCase) -> MoESpec | None:
    if not hasattr(case.spec.router, "k"):
        return None
    return _changed(case.spec, router=replace(case.spec.router, k=case.spec.pool.experts))  # type: ignore[call-arg]


def _has_null(case: LayerCase) -> bool:
    return case.spec.pool.null.count > 0


def _can_take_all(case: LayerCase) -> bool:
    return _every(case) is not None


def _can_shrink(case: LayerCase) -> bool:
    return _single(case) is not None


@law("one routed expert works", LayerCase, _can_shrink)
def one_expert(case: LayerCase) -> None:
    got = run(case.layer(_single(case)), case.tokens())
    _sound(got, "one expert")


@law(
    "k = E works and fills every slot where the router promises fixed k",
    LayerCase,
    _can_take_all,
)
def every_expert(case: LayerCase) -> None:
    spec = _every(case)
    assert spec is not None
    got = run(case.layer(spec), case.tokens())
    _sound(got, "k = E")
    if spec.properties().fixed_k:
        require(bool(got.routing.full.all()), f"{int((~got.routing.full).sum())} empty slots at k = E")


def _steered(case: LayerCase, allowed: list[int]) -> tuple[Tensor, Run, dict[str, Tensor]]:
    """A pass in which tokens may choose among some experts only: (routed and null output, run, gradients)."""
    layer, tokens = case.layer(), case.tokens()
    barred = torch.ones(15, case.spec.pool.experts, dtype=torch.bool)
    barred[:, allowed] = False
    got = run(layer, tokens, context(tokens, exclude=barred))
    return got.y, got, got.gradients


def _own(case: LayerCase, gradients: dict[str, Tensor]) -> list[str]:
    """Parameters [R, ...] of which every expert has its own slice."""
    common = {f"experts.{name}" for name in case.layer().experts.common}
    return [name for name in gradients if name.startswith("experts.") and name not in common]


@law("all tokens on one expert: no other expert gets rows or a gradient", LayerCase)
def crowded(case: LayerCase) -> None:
    _, got, gradients = _steered(case, [0])
    _sound(got, "all on expert 0")
    others = [e for e in got.routing.expert.unique().tolist() if e not in (0, case.spec.pool.experts)]
    require(not others, f"experts {others} were chosen as well")
    for name in _own(case, gradients):
        require(not bool(gradients[name][1:].any()), f"gradient of {name}: experts without rows got some")


@law("an expert nobody chose gets a gradient of zero, not NaN", LayerCase, lambda case: case.spec.pool.experts > 1)
def unused(case: LayerCase) -> None:
    rest = list(range(1, case.spec.pool.experts))
    _, got, gradients = _steered(case, rest)
    _sound(got, "expert 0 unused")
    for name in _own(case, gradients):
        require(not bool(gradients[name][0].any()), f"gradient of {name}: expert 0 had no rows")


@law(
    "all tokens on null experts: routed experts compute nothing and get no gradient",
    LayerCase,
    _has_null,
)
def all_null(case: LayerCase) -> None:
    pool = case.spec.pool
    y, got, gradients = _steered(case, list(range(pool.routed, pool.experts)))
    _sound(got, "all on null")
    close(got.stats.null_share.double(), torch.ones((), dtype=torch.float64), "null share")
    for name in _own(case, gradients):
        require(not bool(gradients[name].any()), f"gradient of {name}: no row was sent")
    if pool.null.copy + pool.null.constant == 0 and case.spec.shared is None:
        close(y, torch.zeros_like(y), "output of zero experts", 0)


@law("a batch of padding alone gives zeros, no load, no loss and no gradient", LayerCase)
def all_masked(case: LayerCase) -> None:
    tokens = case.tokens()
    got = run(case.layer(), tokens.replace(mask=torch.zeros(3, 5, dtype=torch.bool)))
    for name, value in {"output": got.y, **got.losses, **got.gradients}.items():
        close(value, torch.zeros_like(value), name, 0)
    require(int(got.stats.load.sum()) == 0, f"load {got.stats.load.tolist()} of masked tokens")


@law(
    "a token with NaN or infinity counts as masked: its row is NaN, nothing else changes, weights get nothing from it",
    LayerCase,
)
def not_finite(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 2] = mask[2, 4] = False
    expected = run(layer, tokens.replace(mask=mask))
    broken = tokens.embedding.clone()
    broken[1, 2, 0], broken[2, 4] = torch.inf, torch.nan
    got = _run_broken(layer, tokens.replace(embedding=broken))
    bad = ~mask.flatten()
    require(bool(got[0][bad].isnan().all()), "output of the broken tokens is not NaN")
    close(got[0][~bad], expected.y[~bad], "output of the others")
    all_close(got[1], expected.gradients, "gradient of") if not case.spec.balance else None
    require(all(bool(g.isfinite().all()) for g in got[1].values()), "a gradient is not finite")
    close(got[2][~bad], expected.gradient_x[~bad], "gradient of the input") if not case.spec.balance else None


@law("a token with NaN, masked or not, changes no other state of a trunk and no gradient", TrunkCase)
def not_finite_trunk(case: TrunkCase) -> None:
    trunk, tokens = case.trunk(), case.tokens()
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 1] = mask[1, 5] = False
    half = mask.clone()
    half[1, 5] = True
    broken = tokens.embedding.clone()
    broken[0, 1], broken[1, 5, 0] = torch.nan, torch.inf
    found = []
    for embedding, real in ((tokens.embedding, mask), (broken, half)):
        x = embedding.clone().requires_grad_()
        y = trunk(tokens.replace(embedding=x, mask=real)).tokens.embedding
        kept = mask.flatten()
        found.append((y.detach()[mask], *backward(trunk, target(y.flatten(0, 1), x.flatten(0, 1), kept), x)))
    (state, gradients, gradient_x), (state_2, gradients_2, gradient_x_2) = found
    close(state_2, state, "state of the others")
    all_close(gradients_2, gradients, "gradient of")
    close(gradient_x_2[mask], gradient_x[mask], "gradient of the input")


def _run_broken(layer: torch.nn.Module, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Output and gradients when the loss counts the finite rows."""
    x = flat(tokens).detach().requires_grad_()
    y = layer(x, context(tokens)).y
    return (y.detach(), *backward(layer, target(y, x, y.isfinite().all(-1)), x))
