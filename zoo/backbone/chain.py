"""The routers of a trunk in the order they run: what follows what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from zoo.backbone.blocks.base import BlockSpec
from zoo.moe.spec import MoESpec
from zoo.spec import Cost


def mixtures(blocks: Iterable[tuple[str, BlockSpec]]) -> Iterator[tuple[str, MoESpec]]:
    """(path, description) of every MoE layer of blocks given with their paths."""
    for path, block in blocks:
        for key, moe in block.mixtures():
            yield f"{path}.{key}", moe


def check_chain(blocks: Iterable[tuple[str, BlockSpec]]) -> None:
    """Raises ValueError, beginning with the path, where a router cannot follow the one before it."""
    before: MoESpec | None = None
    for path, moe in mixtures(blocks):
        try:
            moe.router.follow(before.router if before else None, before.pool if before else None, moe.pool)
        except ValueError as error:
            raise ValueError(f"{path}.router.{error}") from error
        before = moe


def chain_cost(blocks: Iterable[tuple[str, BlockSpec]], dim: int) -> Cost:
    """What routers cost more, or less where they share parts, because they follow others."""
    total = Cost()
    for _, (_, moe) in pairwise(mixtures(blocks)):
        total = total + moe.router.follow_cost(dim, moe.pool)
    return total
