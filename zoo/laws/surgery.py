"""Surgery: the result is the model it is said to be, and outputs move no further than stated."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.laws.cases import SurgeryCase, make_tokens
from zoo.laws.law import law, require
from zoo.models.unified import ModelSpec, Unified
from zoo.surgery.base import Described, State


def _drawn(spec: ModelSpec, seed: int) -> Described:
    """A model's description with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec, spec.build().state_dict()


def _operands(case: SurgeryCase) -> tuple[Described, dict[str, Described]]:
    """The model operated on, and the models it takes from."""
    sources = {name: _drawn(case.source, case.seed + i) for i, name in enumerate(case.spec.sources(), 1)}
    return _drawn(case.model, case.seed), sources


def _states(described: Described) -> Tensor:
    """[B, S, D] the trunk's answer to fixed tokens."""
    spec, state = described
    model = spec.build()
    model.load_state_dict(state)
    assert isinstance(model, Unified)
    tokens = make_tokens(2, 7, model.spec.backbone.dim, 11, torch.float32)
    with torch.no_grad():
        return model.eval().backbone(tokens).tokens.embedding


def _copied(state: State) -> State:
    return {name: value.clone() for name, value in state.items()}


@law("the result's weights are those of the model it describes, finite, and nothing given is changed", SurgeryCase)
def whole(case: SurgeryCase) -> None:
    (spec, state), sources = _operands(case)
    given = [state, *(weights for _, weights in sources.values())]
    before = [_copied(weights) for weights in given]
    case.spec.check(spec, {name: described for name, (described, _) in sources.items()})
    result = case.spec.apply(spec, state, sources)
    require(bool(_states(result).isfinite().all()), "output: not finite")
    for value in result[1].values():
        value.zero_()
    for weights, old in zip(given, before, strict=True):
        changed = [name for name, value in old.items() if not torch.equal(weights[name], value)]
        require(not changed, f"given weights changed, or are shared with the result: {changed[:3]}")


@law("outputs move no further than the surgery's bound", SurgeryCase, lambda case: case.spec.bound is not None)
def bound(case: SurgeryCase) -> None:
    operated, sources = _operands(case)
    reference = next(iter(sources.values()), operated)
    expected = _states(reference)
    moved = float((_states(case.spec.apply(*operated, sources)) - expected).abs().max() / expected.abs().max())
    assert case.spec.bound is not None
    require(moved <= case.spec.bound, f"outputs moved by {moved:.3g} of the largest, stated {case.spec.bound:.3g}")
