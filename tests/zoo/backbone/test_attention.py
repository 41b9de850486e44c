"""Attention by hand: grouped heads, norms, biases; and the cache that feeds it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.cache import Cache, Growing, Sliding
from zoo.backbone.trunk import Backbone

Build = Callable[..., Backbone]
Make = Callable[..., Tokens]


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def by_hand(trunk: Backbone, x: Tensor, tokens: Tokens) -> Tensor:
    """The first block's attention written out, one head at a time."""
    module, ctx = trunk.blocks[0].attention, trunk._context(tokens, None, None, None)
    spec, size, length = module.spec, module.size, x.shape[1]
    flat = {"q": module.q(x), "k": module.k(x), "v": module.v(x)}
    for name, rule in (("q", module.q_norm), ("k", module.k_norm)):
        if spec.qk_norm_over == "all" and rule is not None:
            flat[name] = norm(flat[name], rule.weight)

    def head(name: str, index: int) -> Tensor:
        part = flat[name][..., index * size : (index + 1) * size]
        rule = None if name == "v" or spec.qk_norm_over == "all" else getattr(module, f"{name}_norm")
        if rule is not None and spec.qk_norm_place == "before":
            part = norm(part, rule.weight)
        if spec.clip is not None:
            part = part.clamp(-spec.clip, spec.clip)
        if name != "v" and module.rotary:
            part = ctx.rope[module.rotary].turn(part[:, None])[:, 0]
        return norm(part, rule.weight) if rule is not None and spec.qk_norm_place == "after" else part

    heads = []
    for index in range(spec.heads):
        group = index * spec.groups // spec.heads
        score = head("q", index) @ head("k", group).transpose(1, 2) * (spec.scale or size**-0.5)
        i, j = torch.arange(length)[:, None], torch.arange(length)
        score = score.masked_fill((j > i) | (j <= i - (spec.window or length)), -torch.inf)
        total = score.exp().sum(-1, keepdim=True)
        if module.sinks is not None:
            total = total + module.sinks[index].exp()
        heads.append(score.exp() / total @ head("v", group))
    return module.o(torch.cat(heads, -1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_heads": 1},
        {"kv_heads": 2, "head_dim": 6},
        {"qk_norm": True, "bias": True, "out_bias": True},
        {"qk_norm": True, "kv_heads": 2, "qk_norm_over": "all", "clip": 0.4},
        {"qk_norm": True, "qk_norm_place": "after", "head_dim": 8, "partial": 0.5},
        {"qk_norm": True, "clip": 0.4, "partial": 0.0, "scale": 0.7},
        {"window": 3},
        {"kv_heads": 2, "window": 2, "sinks": True},
        {"sinks": True, "kv_heads": 1, "scale": 0.2},
    ],
)
def test_attention_equals_the_formula(trunk: Build, tokens: Make, options: dict[str, object]) -> None:
    """Without and with a graph: other kernels may serve; and one token at a time, with a cache."""
    block = {"type": "sequential", "attention": {"heads": 4, **options}, "ffn": {"type": "dense", "hidden": 8}}
    built, given = trunk(block), tokens()
    x, attention = given.embedding, built.blocks[0].attention
    expected, ctx = by_hand(built, x, given), built._context(given, None, None, None)
    torch.testing.assert_close(attention(x, ctx), expected, atol=1e-10, rtol=1e-8)
    cache, steps = built.new_cache(), []
    with torch.no_grad():
        torch.testing.assert_close(attention(x, ctx), expected, atol=1e-10, rtol=1e-8)
        for i in range(x.shape[1]):
            piece = Tokens(embedding=x[:, i : i + 1])
            steps.append(attention(piece.embedding, built._context(piece, cache, None, None)))
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("options", [{"sinks": True, "kv_heads": 2, "window": 2}, {"qk_norm": True, "clip": 0.4}])
def test_gradients_equal_those_of_the_formula(trunk: Build, tokens: Make, options: dict[str, object]) -> None:
    block = {"type": "sequential", "attention": {"heads": 4, **options}, "ffn": {"type": "dense", "hidden": 8}}
    built, given = trunk(block), tokens()
    attention, found = built.blocks[0].attention, []
    for answer in (attention(given.embedding, built._context(given, None, None, None)),
                   by_hand(built, given.embedding, given)):  # fmt: skip
        found.append(torch.autograd.grad(answer.square().sum(), list(attention.parameters())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_rows_of_padding_alone_are_finite(trunk: Build, tokens: Make, sinks: bool, graph: bool) -> None:
    options = {"heads": 4, "kv_heads": 2, "window": 2, "sinks": sinks}
    built = trunk({"type": "sequential", "attention": options, "ffn": {"type": "dense", "hidden": 8}})
    mask = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])
    with torch.set_grad_enabled(graph):
        assert bool(built(tokens(mask=mask)).tokens.embedding.isfinite().all())


def test_heads_of_different_sizes_stand_in_one_trunk(trunk: Build, tokens: Make) -> None:
    ffn = {"type": "dense", "hidden": 8}
    sizes = [{"type": "sequential", "attention": {"heads": 2, "head_dim": s}, "ffn": ffn} for s in (4, 8)]
    built, given = trunk(*sizes), tokens()
    ctx = built._context(given, None, None, None)
    assert {size: tuple(turn.cos.shape) for size, turn in ctx.rope.items()} == {4: (1, 6, 1, 4), 8: (1, 6, 1, 8)}
    assert built(given).tokens.embedding.shape == (2, 6, 16)


def test_a_sliding_cache_keeps_what_can_still_be_seen(trunk: Build, tokens: Make) -> None:
    block = {"type": "sequential", "attention": {"heads": 4, "window": 4}, "ffn": {"type": "dense", "hidden": 8}}
    built, given = trunk(block), tokens(2, 200)
    cache = built.new_cache()
    with torch.no_grad():
        whole = built(given).tokens.embedding
        parts = [given.embedding[:, :50], *given.embedding[:, 50:].split(1, 1)]
        pieces = [built(Tokens(embedding=part), cache).tokens.embedding for part in parts]
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert all(kept.buffer.shape[2] <= 16 for kept in cache.slots[0])


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_sliding_gives_the_last_values(window: int) -> None:
    sliding, pieces = Sliding(1, window), []
    for size in (3, 1, 1, 7, 1, 1, 1, 1, 1, 9, 30, 1, 1):
        past = sum(p.shape[1] for p in pieces)
        pieces.append(torch.randn(2, size, 3))
        whole = torch.cat(pieces, 1)
        torch.testing.assert_close(sliding.append(pieces[-1]), whole[:, max(0, past - window + 1) :])


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
    cache.states[0] = (torch.tensor([[1.0], [2.0]]),)
    cache.reorder(torch.tensor([1, 1, 0]))
    assert cache.routes["state"].flatten().tolist() == [2.0, 2.0, 1.0]
    assert cache.states[0][0].flatten().tolist() == [2.0, 2.0, 1.0]
