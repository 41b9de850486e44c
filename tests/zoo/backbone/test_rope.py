"""Rotary positions: parity on one axis, text on several axes, what a turn depends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoo.backbone.rope import RopeSpec, rotation


def test_one_axis_equals_llama() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(
        hidden_size=32, num_attention_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 5e4}
    )
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 2, 7, 16)
    position = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [4, 5, 6, 7, 8, 9, 10], [0, 0, 3, 9, 100, 1000, 2000]])
    cos, sin = LlamaRotaryEmbedding(config)(query, position)
    theirs = apply_rotary_pos_emb(query, key, cos, sin)
    rope = rotation(position[..., None], RopeSpec(theta=5e4), 16)
    for got, expected in zip((rope.turn(query), rope.turn(key)), theirs, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        RopeSpec(axes=2),
        RopeSpec(axes=3),
        RopeSpec(axes=2, layout="sections", sections=(3, 5)),
        RopeSpec(axes=3, layout="sections", sections=(2, 3, 3)),
    ],
)
def test_a_token_with_one_position_has_it_on_every_axis(spec: RopeSpec) -> None:
    position = torch.arange(9).view(1, 9, 1)
    plain = rotation(position, RopeSpec(), 16)
    for given in (position, position.expand(-1, -1, spec.axes)):
        got = rotation(given, spec, 16)
        torch.testing.assert_close((got.cos, got.sin), (plain.cos, plain.sin))


def test_interleaved_axes_share_high_and_low_frequencies() -> None:
    position = torch.tensor([[[1.0, 0.0]]])
    cos = rotation(position, RopeSpec(axes=2), 8).cos
    turned = (cos[0, 0, 0, :4] < 1).tolist()
    assert turned == [True, False, True, False]


def test_sections_turn_their_own_frequencies() -> None:
    position = torch.tensor([[[0.0, 1.0]]])
    cos = rotation(position, RopeSpec(axes=2, layout="sections", sections=(1, 3)), 8).cos
    assert (cos[0, 0, 0, :4] < 1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("pairs", ["halves", "adjacent"])
def test_only_differences_of_positions_matter(pairs: Any) -> None:
    torch.manual_seed(1)
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    spec = RopeSpec(axes=2, theta=100.0, pairs=pairs)

    def score(a: list[int], b: list[int]) -> float:
        turned = [rotation(torch.tensor([[at]]), spec, 16).turn(x) for x, at in ((query, a), (key, b))]
        return float((turned[0] * turned[1]).sum())

    assert score([3, 5], [1, 1]) == pytest.approx(score([9, 4], [7, 0]), abs=1e-5)
    assert abs(score([3, 5], [1, 1]) - score([3, 5], [1, 2])) > 1e-3


def test_a_turn_keeps_lengths() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    turned = rotation(torch.randint(0, 1000, (2, 5, 1)), RopeSpec(), 8).turn(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=1e-6)


def test_a_wrong_number_of_axes_is_named() -> None:
    with pytest.raises(ValueError, match=r"position: got 3 axes, expected 1 or 2 \(rope\.axes\)"):
        rotation(torch.zeros(1, 4, 3), RopeSpec(axes=2), 8)


def test_adjacent_pairs_are_halves_in_another_order() -> None:
    """DeepSeek's layout: dimensions 2i and 2i + 1 turn together."""
    x = torch.randn(2, 3, 5, 8)
    position = torch.randint(0, 1000, (2, 5, 1))
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    halves = rotation(position, RopeSpec(), 8).turn(x[..., order])
    adjacent = rotation(position, RopeSpec(pairs="adjacent"), 8).turn(x)
    torch.testing.assert_close(adjacent[..., order], halves)


def test_a_part_of_a_head_turns() -> None:
    x, rope = torch.randn(2, 3, 5, 8), rotation(torch.randint(0, 9, (2, 5, 1)), RopeSpec(), 4)
    turned = rope.turn(x)
    torch.testing.assert_close(turned[..., :4], rope.turn(x[..., :4]))
    assert torch.equal(turned[..., 4:], x[..., 4:])


def test_turning_is_computed_in_float32() -> None:
    x, rope = torch.randn(2, 3, 5, 8).bfloat16(), rotation(torch.randint(0, 1000, (2, 5, 1)), RopeSpec(), 8)
    assert torch.equal(rope.turn(x), rope.turn(x.float()).bfloat16())
