"""Copying weights: outputs are equal, what does not fit is named."""

from __future__ import annotations

import pytest
import torch

from modalities.base import Tokens
from zoo.models.unified import ModelSpec, Unified
from zoo.spec import Plain, SpecError, dump, override, parse
from zoo.surgery.base import SurgerySpec
from zoo.surgery.copy import CopySpec
from zoo.surgery.merge import MergeSpec

FFN: Plain = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 6}, "router": {"type": "top_k"}}
MODEL: Plain = {
    "type": "unified",
    "backbone": {
        "dim": 8,
        "layers": [{"block": {"type": "sequential", "attention": {"heads": 2}, "ffn": FFN}}],
    },
    "modalities": {"text": {"type": "text"}},
}
WIDER = override(MODEL, {"backbone.layers.0.block.ffn.experts.hidden": 8})
SHARED = override(MODEL, {"backbone.layers.0.block.ffn.shared": {"count": 1, "hidden": 4}})


def build(plain: Plain, seed: int) -> Unified:
    torch.manual_seed(seed)
    model = parse(ModelSpec, plain).build()
    assert isinstance(model, Unified)
    return model.eval()


def test_outputs_are_equal_and_nothing_is_shared() -> None:
    source, target = build(MODEL, 0), build(MODEL, 1)
    surgery = parse(SurgerySpec, {"type": "copy", "stage": "a"})
    assert surgery.sources() == ("a",) and surgery.owner("text") == "a" and surgery.bound == 0
    spec, state = surgery.apply(target.spec, target.state_dict(), {"a": (source.spec, source.state_dict())})
    assert spec == source.spec
    target.load_state_dict(state)
    tokens = Tokens(embedding=torch.randn(2, 5, 8))
    expected = source.backbone(tokens).tokens.embedding.clone()
    assert torch.equal(target.backbone(tokens).tokens.embedding, expected)
    for value in state.values():
        value.zero_()
    assert torch.equal(source.backbone(tokens).tokens.embedding, expected)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (WIDER, r"ffn\.experts\.gate_up: expected \(4, 12, 8\) in the source, found \(4, 16, 8\)"),
        (SHARED, r"ffn\.shared_experts.*: held by 'a', but not by the model it is copied to"),
    ],
)
def test_another_shape_is_named(plain: Plain, message: str) -> None:
    source, target = build(plain, 0), build(MODEL, 1)
    with pytest.raises(ValueError, match=message):
        CopySpec(stage="a").apply(target.spec, target.state_dict(), {"a": (source.spec, source.state_dict())})


def test_surgeries_are_described_like_other_parts() -> None:
    plain = {"type": "merge", "stages": ["a", "b"], "owners": {"text": "b"}, "scale": 2}
    surgery = parse(SurgerySpec, plain)
    assert surgery == MergeSpec(stages=("a", "b"), owners={"text": "b"}, scale=2.0)
    assert parse(SurgerySpec, dump(surgery)) == surgery
    assert surgery.sources() == ("a", "b") and surgery.bound is None
    assert [surgery.owner(name) for name in ("text", "speech")] == ["b", None]
    with pytest.raises(SpecError, match=r"^stages: got none"):
        parse(SurgerySpec, {"type": "merge", "stages": []})


def test_an_owner_of_no_modality_is_refused_by_the_descriptions() -> None:
    spec = parse(ModelSpec, MODEL)
    with pytest.raises(ValueError, match=r"^owners\.speech: no such modality in a model of text"):
        MergeSpec(stages=("a",), owners={"speech": "a"}).check(spec, {"a": spec})
