"""Merging dense specialists: the figures of the UniMoE-Audio sheet, and what does not fit."""

import pytest
import torch
import torch.nn.functional as F

from modalities.base import Tokens
from zoo.models.unified import ModelSpec, Unified
from zoo.spec import override, parse
from zoo.surgery.merge import average_and_split

DIM, HIDDEN, ROUTED, SPECIALISTS = 16, 24, 8, 4

MOE = {
    "type": "unified",
    "backbone": {
        "dim": DIM,
        "layers": [
            {
                "repeat": 2,
                "block": {
                    "type": "sequential",
                    "attention": {"heads": 2},
                    "ffn": {
                        "type": "moe", "routed": ROUTED, "experts": {"type": "swiglu", "hidden": HIDDEN // 2},
                        "null_experts": {"zero": 1}, "shared": {"count": 2, "hidden": 4, "gate": "router"},
                        "router": {"type": "top_p", "p": 0.7},
                    },
                },
            }
        ],
    },
    "modalities": {"text": {"type": "text"}, "series": {"type": "time_series", "context": 48, "heads": [4]}},
}  # fmt: skip
DENSE = override(MOE, {"backbone.layers.0.block.ffn": {"type": "dense", "hidden": HIDDEN}})


def build(plain: dict, seed: int) -> Unified:
    torch.manual_seed(seed)
    return parse(ModelSpec, plain).build()


def dense(state: dict, x: torch.Tensor, layer: int = 0) -> torch.Tensor:
    gate, up = F.linear(x, state[f"backbone.blocks.{layer}.ffn.gate_up"]).chunk(2, -1)
    return F.linear(F.silu(gate) * up, state[f"backbone.blocks.{layer}.ffn.down"])


def expert(state: dict, x: torch.Tensor, e: int, layer: int = 0) -> torch.Tensor:
    gate, up = F.linear(x, state[f"backbone.blocks.{layer}.ffn.experts.gate_up"][e]).chunk(2, -1)
    return F.linear(F.silu(gate) * up, state[f"backbone.blocks.{layer}.ffn.experts.down"][e])


@pytest.fixture(scope="module")
def specialists() -> list[dict]:
    return [build(DENSE, seed).state_dict() for seed in range(SPECIALISTS)]


def test_attention_and_norms_are_the_average(specialists):
    merged = average_and_split(build(MOE, 9).state_dict(), specialists, {})
    name = "backbone.blocks.1.attention.q.weight"
    expected = sum(s[name] for s in specialists) / SPECIALISTS
    torch.testing.assert_close(merged[name], expected)
    same = average_and_split(build(MOE, 9).state_dict(), [specialists[0]] * SPECIALISTS, {})
    assert torch.equal(same[name], specialists[0][name])


def test_slices_of_one_specialist_sum_to_its_dense_network(specialists):
    merged = average_and_split(build(MOE, 9).state_dict(), specialists, {})
    x = torch.randn(5, DIM)
    for s, state in enumerate(specialists):
        total = expert(merged, x, 2 * s, 1) + expert(merged, x, 2 * s + 1, 1)
        torch.testing.assert_close(total, dense(state, x, 1), rtol=1e-5, atol=1e-6)


def test_eight_covering_slices_of_equal_specialists(specialists):
    merged = average_and_split(build(MOE, 9).state_dict(), [specialists[0]] * SPECIALISTS, {}, scale=0.5)
    x = torch.randn(5, DIM)
    total = sum(expert(merged, x, e) for e in range(ROUTED))
    torch.testing.assert_close(total, 0.5 * 4 * dense(specialists[0], x), rtol=1e-5, atol=1e-6)


def test_modalities_come_from_their_owner_and_gates_stay_random(specialists):
    target = build(MOE, 9).state_dict()
    merged = average_and_split(target, specialists, {"text": 2})
    assert torch.equal(merged["modalities.text.embedding.weight"], specialists[2]["modalities.text.embedding.weight"])
    for name in merged:
        if name.startswith("modalities.series") or ".router." in name or ".shared_experts." in name:
            assert torch.equal(merged[name], target[name]), name
    model = build(MOE, 9)
    model.load_state_dict(merged)
    out = model.backbone(Tokens(embedding=torch.randn(1, 3, DIM)))
    assert out.tokens.embedding.isfinite().all()


def test_what_does_not_fit_is_named(specialists):
    target = build(MOE, 9).state_dict()
    with pytest.raises(ValueError, match="8 routed experts do not divide over 3 specialists"):
        average_and_split(target, specialists[:3], {})
    narrow = build(override(DENSE, {"backbone.layers.0.block.ffn.hidden": 20}), 0).state_dict()
    with pytest.raises(ValueError, match=r"experts\.gate_up: slices of .* expected \(8, 24, 16\)"):
        average_and_split(target, [narrow] * 4, {})
    with pytest.raises(ValueError, match="missing in a specialist; its feed-forward layers must be dense"):
        average_and_split(target, [target] * 4, {})
