"""Latent attention: the formula by hand, its two forms, and what the cache holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.attention.latent import Latent
from zoo.backbone.mask import Visible
from zoo.backbone.trunk import Backbone
from zoo.spec import SpecError

Build = Callable[..., Backbone]
Make = Callable[..., Tokens]
SPEC = {"type": "latent", "heads": 2, "kv_rank": 6, "nope_dim": 3, "rope_dim": 2, "value_dim": 5}


def block(**changes: Any) -> dict[str, Any]:
    return {"type": "sequential", "attention": {**SPEC, **changes}, "ffn": {"type": "dense", "hidden": 8}}


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def by_hand(module: Latent, x: Tensor, turn: Callable[[Tensor], Tensor], sharp: float = 1.0) -> Tensor:
    """Equations 9-19 of DeepSeek-V2 (arXiv 2405.04434), one head at a time."""
    q_factor = (16 / 4) ** 0.5 if module.spec.rank_scale else 1.0
    kv_factor = (16 / 6) ** 0.5 if module.spec.rank_scale else 1.0
    query = module.q(x) if module.spec.q_rank is None else module.q_up(norm(module.q_down(x), module.q_norm.weight))
    query, down = query * q_factor, module.kv_down(x)
    latent = norm(down[..., :6], module.kv_norm.weight) * kv_factor
    shared, heads = turn(down[..., 6:]), []
    for head in range(2):
        up = module.kv_up.weight[8 * head : 8 * head + 8]
        key, value = latent @ up[:3].t(), latent @ up[3:].t()
        own = query[..., 5 * head : 5 * head + 5]
        score = own[..., :3] @ key.transpose(1, 2) + turn(own[..., 3:]) @ shared.transpose(1, 2)
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        heads.append((score * sharp / 5**0.5).masked_fill(later, -torch.inf).softmax(-1) @ value)
    return module.o(torch.cat(heads, -1))


@pytest.mark.parametrize("changes", [{}, {"q_rank": 4, "rank_scale": True, "bias": True}])
@pytest.mark.parametrize("mscale", [None, 1.3])
def test_latent_attention_equals_the_formula(trunk: Build, tokens: Make, changes: Any, mscale: float | None) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "context": 8, "mscale": mscale, "mscale_all_dim": mscale}
    built, given = trunk(block(**changes), rope={"pairs": "adjacent", "scaling": yarn}), tokens()
    module, ctx = built.blocks[0].attention, built._context(given, None, None, None)
    sharp = 1.0 if mscale is None else (0.1 * mscale * torch.tensor(4.0).log().item() + 1) ** 2
    expected = by_hand(module, given.embedding, lambda t: ctx.rope[2].turn(t[:, None])[:, 0], sharp)
    torch.testing.assert_close(module(given.embedding, ctx), expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("new", [1, 3])
def test_both_forms_are_the_same_function(trunk: Build, new: int) -> None:
    module = trunk(block()).blocks[0].attention
    query, memory = torch.randn(2, 2, new, 5).double(), torch.randn(2, 1, 7, 8).double()
    bias = torch.randn(2, 1, new, 7).double().masked_fill(torch.rand(2, 1, new, 7) < 0.2, -torch.inf)
    for see in (Visible(None), Visible(bias)):
        torch.testing.assert_close(
            module.absorbed(query, memory, see, 0.4), module.expanded(query, memory, see, 0.4), atol=1e-12, rtol=1e-10
        )


def test_the_cheaper_form_is_taken(trunk: Build) -> None:
    module = trunk(block()).blocks[0].attention
    assert module._absorbing_is_cheaper(1, 20) and not module._absorbing_is_cheaper(20, 20)


def test_the_cache_holds_latents(trunk: Build, tokens: Make) -> None:
    built, given = trunk(block(), block(rope_dim=0)), tokens()
    cache = built.new_cache()
    with torch.no_grad():
        whole = built(given).tokens.embedding
        first = built(given.replace(embedding=given.embedding[:, :5]), cache).tokens.embedding
        last = built(Tokens(embedding=given.embedding[:, 5:]), cache).tokens.embedding
    torch.testing.assert_close(torch.cat([first, last], 1), whole)
    held = [[(kept.length, *kept.buffer.shape[::3]) for kept in slot] for slot in cache.slots]
    assert held == [[(6, 2, 8)], [(6, 2, 6)]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_dim": 3}, r"attention\.rope_dim: got 3, expected an even number, 0 or more"),
        ({"kv_rank": 0}, r"attention\.kv_rank: got 0, expected 1 or more"),
        ({"q_rank": 0}, r"attention\.q_rank: got 0, expected 1 or more, or none"),
        ({"scale": -1.0}, r"attention\.scale: got -1\.0, expected more than 0, or none"),
        ({"kv_heads": 2}, r"attention: unknown key 'kv_heads'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(trunk: Build, changes: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        trunk(block(**changes))
