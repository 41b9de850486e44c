"""Padding: masked tokens change nothing for the others, and come out as zero."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.laws.cases import LayerCase, TrunkCase, make_tokens
from zoo.laws.law import all_close, close, law
from zoo.laws.probe import run, same_routing, same_stats


def pad(tokens: Tokens) -> tuple[Tokens, Tensor]:
    """tokens with one masked column before and two behind, and one masked row, all filled with other values; and the
    place [T] of the old tokens in the new flat batch."""
    rows, length = tokens.shape
    filled = make_tokens(rows + 1, length + 3, tokens.embedding.shape[-1], 99, tokens.embedding.dtype)
    changes: dict[str, Tensor] = {}
    for f in fields(tokens):
        value = getattr(tokens, f.name)
        if value is None:
            continue
        if f.name == "cond":
            changes[f.name] = torch.cat([value, value[:1]])
            continue
        wide = getattr(filled, f.name)
        wide = torch.zeros_like(filled.mask) if wide is None else wide  # type: ignore[arg-type]
        wide = wide.to(value.dtype)
        if f.name == "position":
            wide = wide.expand(-1, -1, value.shape[-1])
        wide = torch.zeros_like(wide) if f.name == "mask" else wide.clone()
        wide[:rows, 1 : 1 + length] = value
        changes[f.name] = wide
    place = torch.arange((rows + 1) * (length + 3)).view(rows + 1, length + 3)[:rows, 1 : 1 + length].flatten()
    return tokens.replace(**changes), place


@law("masked tokens change no output, statistic, loss or gradient of the others", LayerCase)
def others(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    padded, place = pad(tokens)
    alone, beside = run(layer, tokens), run(layer, padded)
    same_routing(beside.routing, alone.routing, place)
    close(beside.y[place], alone.y, "output")
    same_stats(beside.stats, alone.stats)
    all_close(beside.losses, alone.losses, "loss")
    all_close(beside.gradients, alone.gradients, "gradient of")
    close(beside.gradient_x[place], alone.gradient_x, "gradient of the input")


@law("masked rows come out as zero and get no gradient", LayerCase)
def zero(case: LayerCase) -> None:
    padded, place = pad(case.tokens())
    got = run(case.layer(), padded)
    masked = torch.ones(len(got.y), dtype=torch.bool).index_fill(0, place, False)
    close(got.y[masked], torch.zeros_like(got.y[masked]), "output of padding", 0)
    close(got.gradient_x[masked], torch.zeros_like(got.y[masked]), "gradient of padding", 0)


@law("masked tokens change nothing for the others through a whole trunk", TrunkCase)
def trunk(case: TrunkCase) -> None:
    trunk, tokens = case.trunk(), case.tokens()
    padded, place = pad(tokens)
    with torch.no_grad():
        alone, beside = trunk(tokens), trunk(padded)
    close(beside.tokens.embedding.flatten(0, 1)[place], alone.tokens.embedding.flatten(0, 1), "state")
    for got, expected in zip(beside.records, alone.records, strict=True):
        same_stats(got.stats, expected.stats)
