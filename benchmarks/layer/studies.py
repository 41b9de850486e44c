"""Two questions about our layer alone: what null experts save, and what many experts cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.layer.candidates import Candidate, build_moe, dense, own, own_call, transformers
from benchmarks.layer.clock import Call, Timing, interleave
from benchmarks.layer.measure import (
    MODE_TITLES,
    Row,
    Section,
    Setting,
    agreement,
    drop_gradients,
    inference,
    row,
    training_step,
    verdicts,
)
from benchmarks.layer.shapes import (
    EXPERT_LIMIT,
    EXPERT_SHAPES,
    NULL_LIMIT,
    NULL_SHAPE,
    NULL_SHARES,
    Shape,
    Target,
    tiny,
)
from modalities.base import Tokens
from zoo.moe.layer import MoE
from zoo.moe.routing import RoutingContext

FORCE = 2.0  # a selection bias that no softmax score, in 0..1, outweighs


def null_share(setting: Setting, *, quick: bool = False) -> list[Section]:
    """The same layer with a part of every token's slots on zero experts, as the selection bias forces it."""
    shape = tiny(NULL_SHAPE) if quick else NULL_SHAPE
    x = torch.randn(1, shape.tokens, shape.dim, device=setting.device, dtype=setting.dtype)
    able, skipped = _fast(shape, x, setting)
    candidates, bases = [], {}
    for backend in (c.name.removeprefix("moezoo ") for c in able):
        layers = forced_layers(shape, backend, setting)
        for share, layer in layers.items():
            name = f"moezoo {backend}, {share:.0%} null"
            candidates.append(Candidate(name, "moezoo", layer, own_call(layer)))
            bases[name] = {"0 % null": f"moezoo {backend}, 0% null"}
    judged = [c.name for c in candidates if c.name.endswith(" 50% null")]
    return _sections(
        f"{shape.title}, zero experts", [(c, x) for c in candidates], bases, skipped, (shape,),
        judged, Target(base="0 % null", limit=NULL_LIMIT), setting,
    )  # fmt: skip


def forced_layers(shape: Shape, backend: str, setting: Setting) -> dict[float, MoE]:
    """share -> layer: one set of weights, and a selection bias that puts this share of all slots on zero experts."""
    layers: dict[float, MoE] = {}
    for share in NULL_SHARES:
        more = {"null_experts": {"zero": shape.k // 2}, "router": {"bias": True}}
        layer = build_moe(shape, backend, setting.device, setting.dtype, **more)
        if layers:
            layer.load_state_dict(layers[NULL_SHARES[0]].state_dict(), assign=True)
        forced = round(share * shape.k)
        bias = torch.zeros(layer.pool.experts, dtype=torch.float32, device=setting.device)
        bias[shape.experts : shape.experts + forced] = FORCE
        bias[shape.experts + forced :] = -FORCE
        layer.router.bias = bias
        layers[share] = layer
    return layers


def share_of(layer: MoE, x: Tensor) -> float:
    """The share of slots that went to null experts, as the layer's statistics say."""
    with torch.inference_mode():
        return float(layer(x, RoutingContext.of(Tokens(embedding=x))).stats.null_share)


def many_experts(setting: Setting, *, quick: bool = False) -> list[Section]:
    """More and smaller experts at equal active FLOPs; transformers' grouped_mm and the yardstick beside ours."""
    shapes = [tiny(s) if quick else s for s in EXPERT_SHAPES]
    base, same_k = EXPERT_SHAPES[0].name, EXPERT_SHAPES[1].name
    entries: list[tuple[Candidate, Tensor]] = []
    bases: dict[str, dict[str, str]] = {}
    skipped: dict[str, str] = {}
    yardstick = dense(shapes[0], setting.device, setting.dtype)
    for shape in shapes:
        x = torch.randn(1, shape.tokens, shape.dim, device=setting.device, dtype=setting.dtype)
        able, skipped = _fast(shape, x, setting)
        source = able[0].module
        assert isinstance(source, MoE)
        grouped = [c for c in transformers(shape, source) if c.name == "transformers grouped_mm"]
        for c in [*able, *grouped]:
            name = f"{c.name}, {shape.name}"
            entries.append((Candidate(name, c.family, c.module, c.call), x))
            bases[name] = {base: f"{c.name}, {base}", same_k: f"{c.name}, {same_k}", "dense": yardstick.name}
    entries.insert(0, (yardstick, entries[0][1]))
    judged = [c.name for c, _ in entries if c.family == "moezoo" and c.name.endswith(EXPERT_SHAPES[-1].name)]
    title = f"many experts, D {shapes[0].dim}, {shapes[0].tokens} tokens (experts x F), equal active FLOPs"
    return _sections(
        title, entries, bases, skipped, tuple(shapes), judged, Target(base=base, limit=EXPERT_LIMIT), setting
    )


def _fast(shape: Shape, x: Tensor, setting: Setting) -> tuple[list[Candidate], dict[str, str]]:
    """Our backends that are meant to be fast and run here, checked against transformers' eager experts."""
    ours, skipped = own(shape, setting.device, setting.dtype)
    source = ours[0].module
    assert isinstance(source, MoE)
    agreement([*transformers(shape, source)[:1], *ours], x, skipped)
    able = [c for c in ours if not c.reference and c.name not in skipped and not c.refuses(shape, "forward")]
    return able, skipped


def _sections(
    title: str,
    entries: Sequence[tuple[Candidate, Tensor]],
    bases: dict[str, dict[str, str]],
    skipped: dict[str, str],
    shapes: tuple[Shape, ...],
    judged: Sequence[str],
    target: Target,
    setting: Setting,
) -> list[Section]:
    """Forward, and forward + backward; bases: row -> column -> the row it is divided by."""
    found = []
    for mode, times in (("forward", _forward(entries, setting)), ("train", _train(entries, setting))):
        rows = tuple(_row(c, times, bases) for c, _ in entries)
        found.append(
            Section(
                title=f"{title}, {MODE_TITLES[mode]}", mode=mode, unit="ms", shapes=shapes, rows=rows, skipped=skipped,
                verdicts=verdicts(rows, judged, [target]),
            )
        )  # fmt: skip
    return found


def _row(candidate: Candidate, times: dict[str, Timing], bases: dict[str, dict[str, str]]) -> Row:
    own_time = times[candidate.name]
    ratios = {column: own_time.ms / times[base].ms for column, base in bases.get(candidate.name, {}).items()}
    return row(candidate.name, candidate.family, own_time, ratios)


def _forward(entries: Sequence[tuple[Candidate, Tensor]], setting: Setting) -> dict[str, Timing]:
    calls: dict[str, Call] = {c.name: inference(lambda c=c, x=x: c.call(x)) for c, x in entries}  # type: ignore[misc]
    return interleave(calls, setting.rounds, setting.device)


def _train(entries: Sequence[tuple[Candidate, Tensor]], setting: Setting) -> dict[str, Timing]:
    inputs = {id(x): x.clone().requires_grad_() for _, x in entries}
    calls = {c.name: training_step(c, inputs[id(x)], torch.randn_like(x)) for c, x in entries}

    def drop() -> None:
        for c, x in entries:
            drop_gradients([c], inputs[id(x)])()

    return interleave(calls, setting.rounds, setting.device, drop, min_ms=0)
