"""Attention by hand: grouped heads, norms, biases; and the cache that feeds it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.cache import Cache, Growing
from zoo.backbone.trunk import Backbone

Build = Callable[..., Backbone]
Make = Callable[..., Tokens]


def by_hand(trunk: Backbone, x: Tensor, tokens: Tokens) -> Tensor:
    """The first block's attention written out, one head at a time."""
    module, ctx = trunk.blocks[0].attention, trunk._context(tokens, None, None, None)
    spec, size = module.spec, module.size
    heads = []
    for head in range(spec.heads):
        group = head * spec.groups // spec.heads
        query = module.q(x)[..., head * size : (head + 1) * size]
        key = module.k(x)[..., group * size : (group + 1) * size]
        value = module.v(x)[..., group * size : (group + 1) * size]
        if module.q_norm is not None:
            query = query * (query.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * module.q_norm.weight
            key = key * (key.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * module.k_norm.weight
        query, key = (ctx.rope[size].turn(t[:, None])[:, 0] for t in (query, key))
        score = query @ key.transpose(1, 2) / size**0.5
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        heads.append(score.masked_fill(later, -torch.inf).softmax(-1) @ value)
    return module.o(torch.cat(heads, -1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_heads": 1},
        {"kv_heads": 2, "head_dim": 6},
        {"qk_norm": True, "bias": True, "out_bias": True},
    ],
)
def test_attention_equals_the_formula(trunk: Build, tokens: Make, options: dict[str, object]) -> None:
    block = {"type": "sequential", "attention": {"heads": 4, **options}, "ffn": {"type": "dense", "hidden": 8}}
    built, given = trunk(block), tokens()
    x = given.embedding
    got = built.blocks[0].attention(x, built._context(given, None, None, None))
    torch.testing.assert_close(got, by_hand(built, x, given), atol=1e-10, rtol=1e-8)


def test_key_heads_shrink_the_maps_and_the_cache(trunk: Build, tokens: Make) -> None:
    block = {"type": "sequential", "attention": {"heads": 4, "kv_heads": 2}, "ffn": {"type": "dense", "hidden": 8}}
    built, given = trunk(block), tokens()
    assert tuple(built.blocks[0].attention.k.weight.shape) == (8, 16)
    cache = built.new_cache()
    with torch.no_grad():
        built(given, cache)
    assert [kept.length for kept in cache.slots[0]] == [6, 6]
    assert all(tuple(kept.buffer.shape[:2]) == (2, 2) for kept in cache.slots[0])


def test_the_cache_counts_attention_modules(trunk: Build) -> None:
    assert len(trunk().new_cache().slots) == 2


def test_growing_keeps_values_and_copies_rarely() -> None:
    growing, pieces, buffers = Growing(1), [], set()
    for size in (1, 3, 1, 20, 2, 1, 40):
        piece = torch.randn(2, size, 3)
        pieces.append(piece)
        torch.testing.assert_close(growing.append(piece), torch.cat(pieces, 1))
        buffers.add(growing.buffer.shape[1])
    assert growing.length == 68 and len(buffers) == 3


def test_reordering_a_cache_reorders_what_follows(trunk: Build, tokens: Make) -> None:
    built, given = trunk(), tokens(3, 5)
    prompt, new = given.replace(embedding=given.embedding[:, :4]), given.embedding[:, 4:]
    rows = torch.tensor([2, 0, 0])
    with torch.no_grad():
        cache = built.new_cache()
        built(prompt, cache)
        cache.reorder(rows)
        got = built(Tokens(embedding=new[rows]), cache).tokens.embedding
        expected = built(Tokens(embedding=given.embedding[rows])).tokens.embedding[:, 4:]
    torch.testing.assert_close(got, expected)


def test_reordering_takes_remembered_routes_along() -> None:
    cache = Cache([None])
    cache.routes["state"] = torch.tensor([[1.0], [2.0]])
    cache.reorder(torch.tensor([1, 1, 0]))
    assert cache.routes["state"].flatten().tolist() == [2.0, 2.0, 1.0]
