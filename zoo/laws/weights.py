"""Weights: a token counts in balance as often as its weight says."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zoo.laws.cases import LayerCase, context, flat
from zoo.laws.law import all_close, law
from zoo.laws.probe import record_of
from zoo.moe.balance.step import BalanceStep
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.moe.routing import Routing
from zoo.moe.stats import Stats

TOKENS, SPECIAL = 15, 4


def _balanced(case: LayerCase) -> bool:
    return bool(case.spec.balance)


def _record(case: LayerCase) -> tuple[MoE, LayerRecord]:
    """The router's record of one sequence, no token weighed."""
    layer, tokens = case.layer(), case.tokens(1, TOKENS).replace(document=None, weight=None)
    ctx = context(tokens)
    routing = layer.router(flat(tokens), ctx)
    return layer, record_of(routing, Stats(routing, layer.pool), ctx)


def _weight(value: float) -> Tensor:
    """[T] ones, and `value` at one token."""
    return torch.ones(TOKENS, dtype=torch.float64).index_fill(0, torch.tensor([SPECIAL]), value)


def _balance(layer: MoE, record: LayerRecord) -> dict[str, Tensor]:
    """What balance makes of a record: the losses, and the change of the selection bias."""
    step = BalanceStep([layer])
    step.add([record])
    found = step.losses([record], 0)
    for i, rule in enumerate(layer.spec.balance):
        change = rule.delta(step.counts[0].slots, layer.pool)
        if change is not None:
            found[f"bias {i}"] = change
    return found


@law("weight 1 everywhere changes nothing", LayerCase, _balanced)
def one(case: LayerCase) -> None:
    layer, record = _record(case)
    weighed = replace(record, weight=_weight(1))
    all_close(_balance(layer, weighed), _balance(layer, record), "balance")


@law("a token of weight 0 counts as a masked one", LayerCase, _balanced)
def zero(case: LayerCase) -> None:
    layer, record = _record(case)
    routing, at = record.routing, torch.tensor([SPECIAL])
    empty = routing.selected.index_fill(0, at, routing.experts)
    masked = routing.replace(
        mask=routing.mask.index_fill(0, at, False), expert=empty, chosen=None, gate=routing.gate.index_fill(0, at, 0)
    )
    weighed = replace(record, weight=_weight(0))
    all_close(_balance(layer, weighed), _balance(layer, replace(record, routing=masked)), "balance")


@law("a token of weight 2 counts as two tokens", LayerCase, _balanced)
def two(case: LayerCase) -> None:
    layer, record = _record(case)
    twice = replace(record, routing=_rows(record.routing, [*range(TOKENS), SPECIAL]), shape=(1, TOKENS + 1))
    twice = replace(twice, modality=None)
    all_close(_balance(layer, replace(record, weight=_weight(2))), _balance(layer, twice), "balance")


def _rows(routing: Routing, rows: list[int]) -> Routing:
    """A routing of some tokens, which may stand in it more than once."""
    changes = {
        name: value[rows]
        for name in ("expert", "gate", "raw", "scores", "mask", "shared", "chosen")
        if (value := getattr(routing, name)) is not None
    }
    return routing.replace(**changes)
