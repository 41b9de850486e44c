"""Batch: how tokens are laid out in a batch changes nothing, as far as the declared scope reaches."""

from __future__ import annotations

import torch

from zoo.laws.cases import LayerCase, TrunkCase, flat
from zoo.laws.law import close, law
from zoo.laws.probe import run, same_routing, take


def _token(case: LayerCase) -> bool:
    return case.properties.scope == "token"


def _rows(case: LayerCase | TrunkCase) -> bool:
    return case.properties.scope in ("token", "sequence")


@law("scope token: every token alone gives what it gives in the batch", LayerCase, _token)
def alone(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    whole = run(layer, tokens)
    for row in range(3):
        for column in (0, 3):
            single = run(layer, take(tokens, slice(row, row + 1), slice(column, column + 1)))
            place = slice(5 * row + column, 5 * row + column + 1)
            same_routing(whole.routing, single.routing, place)
            close(whole.y[place], single.y, f"output of token {place.start}")


@law("scope token: permuting all tokens permutes the outputs", LayerCase, _token)
def permute(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    changes = {
        name: value.flatten(0, 1)[order].view_as(value)
        for name, value in vars(tokens).items()
        if value is not None and name != "cond"
    }
    whole, mixed = run(layer, tokens), run(layer, tokens.replace(**changes))
    close(mixed.y, whole.y[order], "output")
    for name, gradient in whole.gradients.items():
        if not layer.spec.balance:
            close(mixed.gradients[name], gradient, f"gradient of {name}")


@law("scope token or sequence: splitting the batch into rows changes nothing", LayerCase, _rows)
def split(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    whole = run(layer, tokens)
    pieces = torch.cat([run(layer, take(tokens, slice(i, i + 1))).y for i in range(3)])
    close(pieces, whole.y, "output")


@law("scope token or sequence: documents packed in a row do not see each other", TrunkCase, _rows)
def documents(case: TrunkCase) -> None:
    trunk, tokens = case.trunk(), case.tokens()
    assert tokens.document is not None
    first = tokens.document == 0
    other = torch.where(first[..., None], tokens.embedding + 1, tokens.embedding)
    with torch.no_grad():
        before, after = trunk(tokens).tokens.embedding, trunk(tokens.replace(embedding=other)).tokens.embedding
    close(after[~first], before[~first], "state of the second document")


@law("scope token or sequence: splitting the batch into rows changes nothing in a trunk", TrunkCase, _rows)
def trunk(case: TrunkCase) -> None:
    trunk, tokens = case.trunk(), case.tokens()
    with torch.no_grad():
        whole = trunk(tokens).tokens
        for row in range(2):
            single = trunk(take(tokens, slice(row, row + 1))).tokens
            close(flat(single), whole.embedding[row], f"state of row {row}")
