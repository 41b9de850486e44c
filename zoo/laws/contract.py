"""What a routing is: shapes, ids, empty slots, pure weights; and what its statistics count."""

from __future__ import annotations

import torch

from zoo.laws.cases import LayerCase, context, flat
from zoo.laws.law import close, law, require
from zoo.laws.probe import run
from zoo.moe.routing import Routing


def _routing(case: LayerCase) -> tuple[Routing, Routing]:
    """The router's own routing and the one after policies, the last two tokens masked."""
    layer, tokens = case.layer(), case.tokens()
    ctx = context(tokens)
    ctx = ctx.replace(mask=ctx.mask.index_fill(0, torch.tensor([13, 14]), False))
    return layer.router(flat(tokens), ctx), layer.route(flat(tokens), ctx)


@law(
    "slots hold distinct expert ids or E, empty slots weigh 0, masked rows are empty",
    LayerCase,
)
def slots(case: LayerCase) -> None:
    pool = case.spec.pool
    for routing in _routing(case):
        expert, full = routing.expert, routing.full
        require(expert.dtype == torch.int64, f"expert: {expert.dtype}, expected int64")
        require(bool(((expert >= 0) & (expert <= pool.experts)).all()), f"expert: ids outside 0..{pool.experts}")
        require(not bool(full[~routing.mask].any()), "expert: a masked token holds a slot")
        close(routing.gate[~full], torch.zeros_like(routing.gate[~full]), "gate of empty slots", 0)
        hits = torch.nn.functional.one_hot(expert, pool.experts + 1)[..., : pool.experts].sum(1)
        require(bool((hits <= 1).all()), f"expert: a token chose one expert {int(hits.max())} times")
        shape = (len(expert), pool.columns)
        require(tuple(routing.raw.shape) == shape, f"raw: shape {tuple(routing.raw.shape)}, expected {shape}")
        require(routing.raw.dtype.itemsize >= 4, f"raw: {routing.raw.dtype}, expected float32 at least")
        require((routing.shared is None) == (pool.shared == 0), f"shared: {routing.shared} for {pool.shared} columns")


@law("weigh is pure: it gives the gates of the router's own choice again", LayerCase)
def weigh(case: LayerCase) -> None:
    layer = case.layer()
    routing, _ = _routing(case)
    gate, shared = layer.router.weigh(routing.raw, routing.expert)
    close(gate, routing.gate, "gate")
    if routing.shared is not None and shared is not None:
        close(shared, routing.shared, "shared")


@law("every real token fills the same number of slots", LayerCase, lambda case: case.properties.fixed_k)
def fixed_k(case: LayerCase) -> None:
    routing = _routing(case)[1]
    filled = routing.full.sum(-1)[routing.mask].unique()
    require(len(filled) == 1, f"slots filled per token: {filled.tolist()}, declared fixed")


@law("an excluded expert is chosen by nobody and weighs nothing", LayerCase)
def exclude(case: LayerCase) -> None:
    layer, tokens = case.layer(), case.tokens()
    barred = torch.zeros(15, case.spec.pool.experts, dtype=torch.bool)
    barred[:, 0] = True
    routing = layer.route(flat(tokens), context(tokens), exclude=barred)
    require(not bool((routing.expert == 0).any()), f"expert 0: chosen {int((routing.expert == 0).sum())} times")
    require(bool(routing.gate.isfinite().all()), "gate: not finite under an exclusion")


def _lists(routing: Routing) -> tuple[list[list[int]], list[list[int]]]:
    """Each token's experts before and after policies."""
    return routing.selected.tolist(), routing.expert.tolist()


@law("statistics equal a count by hand", LayerCase)
def statistics(case: LayerCase) -> None:
    tokens = case.tokens()
    mask = torch.ones(3, 5, dtype=torch.bool).index_fill(1, torch.tensor([4]), False)
    got = run(case.layer(), tokens.replace(mask=mask))
    pool, routing, stats = case.spec.pool, got.routing, got.stats
    load = [sum(row.count(e) for row in routing.selected.tolist()) for e in range(pool.experts)]
    require(stats.load.tolist() == load, f"load: {stats.load.tolist()}, counted {load}")
    require(int(stats.tokens) == 12, f"tokens: {int(stats.tokens)}, expected 12")
    kept = sum(len({*a} & {*b} - {pool.experts}) for a, b in zip(*_lists(routing), strict=True))
    figures = {
        "mean_k": (stats.mean_k, sum(load) / 12),
        "null_share": (stats.null_share, sum(load[pool.routed :]) / max(sum(load), 1)),
        "dropped_share": (stats.dropped_share, 1 - kept / max(sum(load), 1)),
        "imbalance": (stats.imbalance, max(load) * pool.experts / max(sum(load), 1)),
    }
    for name, (value, expected) in figures.items():
        close(value.double(), torch.tensor(expected, dtype=torch.float64), name, 1e-6)
