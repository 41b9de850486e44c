"""Batches of pending tokens by the experts they need, where these are known ahead (Read-ME, arXiv 2410.19123)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Tokens start..stop of a request."""

    request: int
    start: int
    stop: int


Need = Collection[int]  # the experts of one token
Batch = tuple[Piece, ...]


def by_expert(requests: Sequence[Sequence[Need]], size: int, patience: int | None = None) -> list[Batch]:
    """Batches of at most `size` tokens that need few experts together; every token comes once.

    A batch opens with the expert that most tokens wait for, takes all of them, and goes on with the expert that most
    tokens are then ready for. A token is ready once those before it of its request are in this batch or an earlier one,
    so that none overtakes another of its own request. Requests that no batch has served for `patience` batches go first
    (None: they may wait as long as others are more).

    requests  for each the experts of its tokens in order, as `Lookahead.needs` has them
    """
    _check(requests, size, patience)
    done, idle, batches = [0] * len(requests), [0] * len(requests), []
    while any(at < len(tokens) for at, tokens in zip(done, requests, strict=True)):
        taken, open_experts = list(done), set[int]()
        late = [r for r, since in enumerate(idle) if patience is not None and since >= patience]
        for request in sorted(late, key=lambda r: -idle[r]):
            if sum(taken) - sum(done) < size and taken[request] < len(requests[request]):
                open_experts |= set(requests[request][taken[request]])
                taken[request] += 1
        _fill(requests, taken, sum(done) + size, open_experts)
        batches.append(_pieces(done, taken))
        for request, (before, after) in enumerate(zip(done, taken, strict=True)):
            idle[request] = 0 if after > before or after == len(requests[request]) else idle[request] + 1
        done = taken
    return batches


def in_order(requests: Sequence[Sequence[Need]], size: int) -> list[Batch]:
    """Batches of at most `size` tokens, requests one after the other."""
    _check(requests, size, None)
    return _in_turn(requests, size, lambda left: len(left))


def in_turn(requests: Sequence[Sequence[Need]], size: int) -> list[Batch]:
    """Batches of at most `size` tokens, one token of each request at a time, as decoding has them."""
    _check(requests, size, None)
    return _in_turn(requests, size, lambda left: 1)


def needed(batch: Batch, requests: Sequence[Sequence[Need]]) -> set[int]:
    """The experts of a batch's tokens."""
    return {expert for p in batch for need in requests[p.request][p.start : p.stop] for expert in need}


def _check(requests: Sequence[Sequence[Need]], size: int, patience: int | None) -> None:
    if size < 1:
        raise ValueError(f"size: got {size}, expected 1 or more tokens")
    if patience is not None and patience < 1:
        raise ValueError(f"patience: got {patience}, expected 1 or more batches")
    for number, tokens in enumerate(requests):
        if any(not need for need in tokens):
            raise ValueError(f"requests[{number}]: a token needs no expert")


def _fill(requests: Sequence[Sequence[Need]], taken: list[int], limit: int, open_experts: set[int]) -> None:
    """Takes what the open experts serve, then opens the one with the longest queue, until `limit` tokens are taken."""
    while True:
        for request, tokens in enumerate(requests):
            while (
                sum(taken) < limit and taken[request] < len(tokens) and open_experts.issuperset(tokens[taken[request]])
            ):
                taken[request] += 1
        waiting = [request for request, tokens in enumerate(requests) if taken[request] < len(tokens)]
        if sum(taken) >= limit or not waiting:
            return
        best = max(waiting, key=lambda r: _gain(requests, taken, open_experts | set(requests[r][taken[r]])))
        open_experts |= set(requests[best][taken[best]])


def _gain(requests: Sequence[Sequence[Need]], taken: Sequence[int], experts: set[int]) -> int:
    """Tokens that are ready for these experts."""
    total = 0
    for at, tokens in zip(taken, requests, strict=True):
        while at < len(tokens) and experts.issuperset(tokens[at]):
            at, total = at + 1, total + 1
    return total


def _in_turn(requests: Sequence[Sequence[Need]], size: int, share: Callable[[Sequence[Need]], int]) -> list[Batch]:
    """Round after round, `share` of what is left of each request, cut into batches."""
    done = [0] * len(requests)
    order: list[int] = []
    while any(at < len(tokens) for at, tokens in zip(done, requests, strict=True)):
        for request, tokens in enumerate(requests):
            left = tokens[done[request] :]
            count = share(left) if left else 0
            order += [request] * count
            done[request] += count
    at, batches = [0] * len(requests), []
    for start in range(0, len(order), size):
        after = list(at)
        for request in order[start : start + size]:
            after[request] += 1
        batches.append(_pieces(at, after))
        at = after
    return batches


def _pieces(before: Sequence[int], after: Sequence[int]) -> Batch:
    return tuple(Piece(r, a, b) for r, (a, b) in enumerate(zip(before, after, strict=True)) if b > a)
