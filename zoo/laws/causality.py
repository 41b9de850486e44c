"""Causality: the future changes nothing; cached and chunked decoding equal the full pass."""

from __future__ import annotations

import torch

from modalities.base import Tokens
from zoo.laws.cases import LayerCase, TrunkCase, make_tokens
from zoo.laws.law import close, law
from zoo.laws.probe import run, take


def _causal(case: LayerCase | TrunkCase) -> bool:
    return case.properties.causal


def _other_future(tokens: Tokens, cut: int) -> Tokens:
    """The same tokens up to `cut`, others behind."""
    rows, length = tokens.shape
    other = make_tokens(rows, length, tokens.embedding.shape[-1], 77, tokens.embedding.dtype)
    embedding, ids = tokens.embedding.clone(), None if tokens.ids is None else tokens.ids.clone()
    embedding[:, cut:] = other.embedding[:, cut:]
    if ids is not None and other.ids is not None:
        ids[:, cut:] = other.ids[:, cut:]
    return tokens.replace(embedding=embedding, ids=ids)


@law("later tokens change no earlier output of the layer", LayerCase, _causal)
def layer(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    before = run(layer, tokens).y.view(3, 5, -1)
    for cut in (1, 2, 4):
        after = run(layer, _other_future(tokens, cut)).y.view(3, 5, -1)
        close(after[:, :cut], before[:, :cut], f"output before token {cut}")


@law("later tokens change no earlier state of the trunk", TrunkCase, _causal)
def trunk(case: TrunkCase) -> None:
    trunk, tokens = case.trunk(), case.tokens()
    with torch.no_grad():
        before = trunk(tokens).tokens.embedding
        for cut in (1, 3, 6):
            after = trunk(_other_future(tokens, cut)).tokens.embedding
            close(after[:, :cut], before[:, :cut], f"state before token {cut}")


def _decode(case: TrunkCase, tokens: Tokens, bounds: list[int], what: str) -> None:
    trunk = case.trunk()
    with torch.no_grad():
        full = trunk(tokens).tokens.embedding
        cache = trunk.new_cache()
        for start, stop in zip([0, *bounds], [*bounds, tokens.shape[1]], strict=True):
            piece = trunk(take(tokens, columns=slice(start, stop)), cache).tokens.embedding
            close(piece, full[:, start:stop], f"{what}: state of tokens {start}..{stop - 1}")


@law("decoding one token at a time with a cache equals the full pass", TrunkCase, _causal)
def cached(case: TrunkCase) -> None:
    _decode(case, case.tokens(), [1, 2, 3, 4, 5, 6], "one by one")
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, :2] = False
    plain = case.tokens().replace(document=None, position=None, mask=None)
    _decode(case, plain, [1, 2, 3, 4, 5, 6], "plain")
    _decode(case, plain.replace(mask=mask), [3, 4, 5, 6], "padded on the left")


@law("decoding in chunks with a cache equals the full pass, also with a bidirectional span", TrunkCase, _causal)
def chunked(case: TrunkCase) -> None:
    tokens = case.tokens()
    _decode(case, tokens, [3, 4], "chunks")
    inside = torch.zeros(2, 7, dtype=torch.bool)
    inside[:, 2:4] = True
    _decode(case, tokens.replace(span=inside.long(), bidirectional=inside), [2, 4], "chunks around a span")
