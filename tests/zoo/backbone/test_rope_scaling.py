"""Rope scalings against transformers' tables, and what depends on the length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.rope import RopeSpec, Rotation, rotation
from zoo.backbone.trunk import BackboneSpec
from zoo.spec import Plain, SpecError, dump, parse

SIZE = 16
SHORT, LONG = [1.0 + i / 8 for i in range(8)], [1.0 + i for i in range(8)]
CASES: dict[str, tuple[Plain, Plain]] = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
    "dynamic": ({"rope_type": "dynamic", "factor": 3.0}, {"type": "dynamic", "factor": 3.0, "context": 32}),
    "yarn": ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
             {"type": "yarn", "factor": 8.0, "context": 64}),
    "yarn, mscale": ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "mscale": 0.8,
                      "mscale_all_dim": 1.1, "beta_fast": 16.0, "beta_slow": 2.0},
                     {"type": "yarn", "factor": 8.0, "context": 64, "mscale": 0.8, "mscale_all_dim": 1.1,
                      "beta_fast": 16.0, "beta_slow": 2.0}),
    "yarn, no truncation": ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64,
                             "truncate": False, "attention_factor": 1.3},
                            {"type": "yarn", "factor": 8.0, "context": 64, "truncate": False,
                             "attention_factor": 1.3}),
    "llama3": ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0},
               {"type": "llama3", "factor": 8.0, "context": 256}),
    "longrope": ({"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 8.0,
                  "original_max_position_embeddings": 32},
                 {"type": "longrope", "short": SHORT, "long": LONG, "factor": 8.0, "context": 32}),
}  # fmt: skip


def ours(scaling: Plain, position: Tensor, **more: Any) -> Rotation:
    spec = parse(RopeSpec, {"theta": 1e4, "scaling": scaling})
    return rotation(position[..., None], spec, SIZE, **more)


@pytest.mark.parametrize("name", CASES)
def test_angles_equal_transformers(name: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs, scaling = CASES[name]
    config = LlamaConfig(
        hidden_size=2 * SIZE, num_attention_heads=2, max_position_embeddings=32,
        rope_parameters={"rope_theta": 1e4, **theirs},
    )  # fmt: skip
    for length in (20, 32, 33, 300, 2000):  # within the context and beyond it
        position = torch.stack([torch.arange(length - 8, length), torch.arange(8)])
        cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), position)
        got = ours(scaling, position)
        torch.testing.assert_close(got.cos[:, :, 0], cos, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(got.sin[:, :, 0, SIZE // 2 :], sin[..., SIZE // 2 :], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_padding_does_not_count_as_length(name: str) -> None:
    position = torch.tensor([[5, 900, 6, 7]])
    mask = torch.tensor([[True, False, True, True]])
    short = ours(CASES[name][1], position[:, [0, 2, 3]])
    torch.testing.assert_close(ours(CASES[name][1], position, mask=mask).cos[:, [0, 2, 3]], short.cos)


def test_within_the_context_dynamic_changes_nothing() -> None:
    position = torch.arange(32)[None]
    torch.testing.assert_close(
        ours(CASES["dynamic"][1], position).cos, rotation(position[..., None], RopeSpec(), 16).cos
    )


def test_longrope_factors_beyond_the_context() -> None:
    """PhiMoE keeps its short divisors and changes the attention factor."""
    scaling = {**CASES["longrope"][1], "attention_factor": 1.25, "long_attention_factor": 1.5, "switch": False}
    near, far = (ours(scaling, torch.tensor([[0, end]])).cos[0, :, 0] for end in (31, 32))
    torch.testing.assert_close(near[0], torch.full((SIZE,), 1.25))
    torch.testing.assert_close(far[0], torch.full((SIZE,), 1.5))
    plain = ours({**scaling, "switch": True}, torch.tensor([[0, 32]])).cos[0, :, 0]
    assert not torch.allclose(plain[1], far[1])


def test_cached_keys_keep_the_angles_of_their_step() -> None:
    """Dynamic scaling beyond the context: a later step does not turn older keys anew."""
    rope = {"scaling": {"type": "dynamic", "factor": 2.0, "context": 4}}
    block = {"type": "sequential", "attention": {"heads": 1}, "ffn": {"type": "dense", "hidden": 4}}
    trunk = parse(BackboneSpec, {"dim": 8, "layers": [{"block": block}], "rope": rope}).build()
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    cache, attention = trunk.new_cache(), trunk.blocks[0].attention  # type: ignore[union-attr]
    with torch.no_grad():
        for start, stop in ((0, 4), (4, 5), (5, 6)):
            piece = Tokens(embedding=x[:, start:stop])
            attention(piece.embedding, trunk._context(piece, cache, None, None))  # type: ignore[operator]
    keys = cache.slots[0][0].append(torch.zeros(1, 1, 0, 8))
    for index, length in enumerate((4, 4, 4, 4, 5, 6)):
        turn = rotation(torch.tensor([[[index], [length - 1]]]), trunk.spec.rope, 8)
        key = attention.k(x[:, index])[:, None, None].expand(1, 1, 2, 8)  # type: ignore[union-attr, operator]
        torch.testing.assert_close(keys[:, :, index], turn.turn(key)[:, :, 0])


def test_what_does_not_fit_is_refused() -> None:
    block = {"type": "sequential", "attention": {"heads": 1}, "ffn": {"type": "dense", "hidden": 4}}
    for scaling, message in [
        (CASES["longrope"][1], r"rope\.scaling\.short: got 8 numbers, expected 4"),
        ({"type": "linear", "factor": 0.5}, r"rope\.scaling\.factor: got 0\.5, expected 1 or more"),
        ({"type": "llama3", "factor": 2.0, "context": 8, "low_freq_factor": 4.0}, r"rope\.scaling\.high_freq_factor"),
        ({"type": "yarn", "factor": 2.0, "context": 8, "beta_fast": 0.5}, r"rope\.scaling\.beta_fast: got 0\.5"),
        ({"type": "yarm"}, r"rope\.scaling\.type: no rope_scaling 'yarm' \(did you mean 'yarn'\?\)"),
    ]:
        with pytest.raises(SpecError, match=message):
            parse(BackboneSpec, {"dim": 8, "rope": {"scaling": scaling}, "layers": [{"block": block}]})


@pytest.mark.parametrize("name", CASES)
def test_descriptions_round_trip(name: str) -> None:
    spec = parse(RopeSpec, {"scaling": CASES[name][1]})
    assert parse(RopeSpec, dump(spec)) == spec
