"""Batching by expert and caches of experts, on routes known ahead."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import zoo
from modalities.base import Tokens
from zoo.inference.expert_batches import Batch, by_expert, in_order, in_turn, needed
from zoo.inference.expert_cache import hits
from zoo.inference.lookahead import lookahead

Routes = list[list[set[int]]]


def markov(requests: int, length: int, experts: int, seed: int, stay: float = 0.8) -> Routes:
    """Routes that stay with an expert for a while."""
    draw, found = random.Random(seed), []
    for _ in range(requests):
        route = [draw.randrange(experts)]
        while len(route) < length:
            route.append(route[-1] if draw.random() < stay else draw.randrange(experts))
        found.append([{expert} for expert in route])
    return found


def mean_needed(batches: Sequence[Batch], routes: Routes) -> float:
    return sum(len(needed(batch, routes)) for batch in batches) / len(batches)


@pytest.mark.parametrize("make", [by_expert, in_order, in_turn])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_every_token_comes_once_and_in_the_order_of_its_request(make: Callable[..., list[Batch]], size: int) -> None:
    routes = [*markov(5, 23, 6, 0), [], [{1, 2}, {2}, {0, 1}]]
    at, batches = [0] * len(routes), make(routes, size)
    for batch in batches:
        assert 0 < sum(piece.stop - piece.start for piece in batch) <= size
        for piece in batch:
            assert piece.start == at[piece.request] < piece.stop
            at[piece.request] = piece.stop
    assert at == [len(route) for route in routes]
    assert all(sum(p.stop - p.start for p in batch) == size for batch in batches[:-1])


@pytest.mark.parametrize("seed", range(3))
def test_batches_by_expert_need_fewer_of_them(seed: int) -> None:
    routes = markov(12, 40, 8, seed)
    aware, plain, turns = (mean_needed(make(routes, 32), routes) for make in (by_expert, in_order, in_turn))
    assert aware < 0.8 * plain and aware < 0.6 * turns


def test_a_batch_by_hand() -> None:
    """Expert 0 has two ready tokens and 1 has one; behind the two another is ready for 1."""
    routes: Routes = [[{0}, {0}, {1}], [{1}]]
    first, second = by_expert(routes, 2)
    assert [(p.request, p.start, p.stop) for p in first] == [(0, 0, 2)]
    assert needed(first, routes) == {0} and needed(second, routes) == {1}


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_bounds_the_wait(patience: int) -> None:
    routes = [*markov(6, 60, 2, 1, stay=0.97), [{7}] * 5]  # an expert that one request alone needs

    def longest(batches: list[Batch]) -> int:
        worst, served, left = 0, dict.fromkeys(range(7), -1), [len(route) for route in routes]
        for number, batch in enumerate(batches):
            for piece in batch:
                worst = max(worst, number - served[piece.request] - 1)
                served[piece.request] = number
                left[piece.request] -= piece.stop - piece.start
        return worst

    assert longest(by_expert(routes, 8, patience)) <= patience
    assert longest(by_expert(routes, 8)) > 10


def test_output_is_that_of_requests_alone() -> None:
    """Pieces in the order of the batches, each request with a cache of its own."""
    gate = {"type": "pre_gated", "vocab": 259, "init_std": 1.0}
    router = {"type": "top_k", "k": 1, "allow_constant": True, "gate": gate}
    ffn = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": router}
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    described: Any = {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {"text": {"type": "text", "length": 64}},
    }
    model: Any = zoo.create(described, seed=0).eval()
    prompts = ["To be, or not to be", "A horse! A horse!", "Now is"]
    ids: list[torch.Tensor] = []
    for prompt in prompts:
        batch = model.modality("text").prompt([prompt])
        ids.append(batch["ids"][:, -int(batch["mask"].sum()) :])
    routes = [lookahead(model, row).needs()[0] for row in ids]
    assert [len(route) for route in routes] == [row.shape[1] for row in ids]
    assert lookahead(model, prompts).needs() == routes
    caches, states = [model.backbone.new_cache() for _ in ids], [[] for _ in ids]  # type: ignore[var-annotated]
    text = model.modality("text")
    with torch.no_grad():
        for piece in (piece for batch in by_expert(routes, 5) for piece in batch):
            part = ids[piece.request][:, piece.start : piece.stop]
            tokens: Tokens = text.encode({"ids": part, "mask": torch.ones_like(part, dtype=torch.bool)})
            states[piece.request].append(model.backbone(tokens, caches[piece.request]).tokens.embedding)
        for row, pieces in zip(ids, states, strict=True):
            whole = model.backbone(text.encode({"ids": row, "mask": torch.ones_like(row, dtype=torch.bool)}))
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole.tokens.embedding)


def test_the_published_trace() -> None:
    """A B C A B D A with room for two: recency finds none, knowledge of the future two."""
    assert hits("ABCABDA", 2, "lru") == 0 and hits("ABCABDA", 2, "belady") == 2
    assert hits("ABCABDA", 4, "lru") == hits("ABCABDA", 9, "belady") == 3


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("capacity", [1, 3, 5])
def test_knowledge_of_the_future_is_never_beaten(seed: int, capacity: int) -> None:
    draw = random.Random(seed)
    trace = [min(int(draw.paretovariate(0.7)), 12) for _ in range(300)]
    best = hits(trace, capacity, "belady")
    assert best >= hits(trace, capacity, "lru") and best >= hits(trace, capacity, "random", seed)
    round_robin = list(range(4)) * 20  # recency never finds anything in a cycle
    assert hits(round_robin, 3, "lru") == 0 < hits(round_robin, 3, "random", seed) <= hits(round_robin, 3, "belady")


def test_recency_beats_chance_on_skewed_routes() -> None:
    def mean(policy: Any) -> float:
        weights = [1 / rank for rank in range(1, 13)]  # Zipf
        traces = [random.Random(s).choices(range(12), weights, k=400) for s in range(10)]
        return sum(hits(trace, 3, policy, s) for s, trace in enumerate(traces)) / 10

    assert mean("lru") > mean("random")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: by_expert([[{0}]], 0), "size: got 0"),
        (lambda: by_expert([[{0}]], 2, 0), "patience: got 0"),
        (lambda: in_order([[{0}], [set()]], 2), r"requests\[1\]: a token needs no expert"),
        (lambda: hits("AB", 0, "lru"), "capacity: got 0"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
