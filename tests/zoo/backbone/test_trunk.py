"""The trunk: adaptive blocks, recomputation, carry, positions, edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modalities.base import Tokens
from zoo.backbone.norm import RMSNorm
from zoo.backbone.trunk import Backbone

Build = Callable[..., Backbone]
Make = Callable[..., Tokens]
MOE = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": {"type": "top_k"}}


def adaln(gate: str = "one") -> dict[str, Any]:
    return {"type": "adaln", "attention": {"heads": 4}, "ffn": MOE, "gate": gate}


def plain() -> dict[str, Any]:
    return {"type": "sequential", "attention": {"heads": 4}, "ffn": MOE}


def states(trunk: Backbone, tokens: Tokens) -> torch.Tensor:
    with torch.no_grad():
        return trunk(tokens).tokens.embedding


def test_adaln_starts_as_a_sequential_block(trunk: Build, tokens: Make) -> None:
    adaptive, sequential = trunk(adaln(), drawn=False, cond=5), trunk(plain(), drawn=False)
    shared = {n: p for n, p in adaptive.state_dict().items() if "modulation" not in n}
    sequential.load_state_dict(shared)
    expected = states(sequential, tokens())
    torch.testing.assert_close(states(adaptive, tokens(cond=torch.randn(2, 5).double())), expected)
    torch.testing.assert_close(states(adaptive, tokens()), expected)  # rows without conditioning


def test_adaln_zero_starts_as_the_identity(trunk: Build, tokens: Make) -> None:
    built, given = trunk(adaln("zero"), drawn=False, cond=5), tokens(cond=torch.randn(2, 5).double())
    x = given.embedding
    torch.testing.assert_close(states(built, given), x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt())


def test_adaln_zero_without_conditioning_is_an_error(trunk: Build, tokens: Make) -> None:
    with pytest.raises(ValueError, match=r"cond: missing; an adaln block with gate: zero needs conditioning"):
        trunk(adaln("zero"), cond=5)(tokens())


def test_conditioning_acts_on_its_own_row(trunk: Build, tokens: Make) -> None:
    built = trunk(adaln(), cond=5)
    cond = torch.randn(2, 5).double()
    other = cond.clone()
    other[1] += 1
    before, after = states(built, tokens(cond=cond)), states(built, tokens(cond=other))
    torch.testing.assert_close(after[0], before[0])
    assert float((after[1] - before[1]).abs().max()) > 1e-3


def test_recomputing_saves_activations_and_changes_nothing(trunk: Build, tokens: Make) -> None:
    found = []
    for checkpoint in (False, True):
        built = trunk(plain(), plain(), checkpoint=checkpoint).train()
        saved: list[int] = []

        def pack(t: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = built(tokens(4, 16))
        kept = sum(saved)
        out.tokens.embedding.square().sum().backward()
        found.append((kept, out.tokens.embedding.detach(), [p.grad.clone() for p in built.parameters()]))
    assert found[1][0] < found[0][0] / 2
    torch.testing.assert_close(found[1][1], found[0][1])
    torch.testing.assert_close(found[1][2], found[0][2])


def test_a_cache_is_filled_once_also_where_activations_are_recomputed(trunk: Build, tokens: Make) -> None:
    built = trunk(plain(), checkpoint=True).train()
    cache = built.new_cache()
    built(tokens(), cache).tokens.embedding.sum().backward()
    assert cache.slots[0][0].length == 6


def test_every_moe_layer_leaves_a_record_in_order(trunk: Build, tokens: Make) -> None:
    dense = {**plain(), "ffn": {"type": "dense", "hidden": 8}}
    built = trunk(plain(), dense, plain())
    given = tokens(modality=torch.ones(2, 6).long(), document=torch.zeros(2, 6).long())
    out = built(given, output_hidden=True)
    assert len(out.records) == 2 and len(built.moe_layers()) == 2 and len(out.hidden) == 3
    assert out.records[0].shape == (2, 6) and int(out.records[0].stats.tokens) == 12
    assert out.records[1].modality is not None and out.records[1].modality.tolist() == [1] * 12
    torch.testing.assert_close(built.norm(out.hidden[-1]), out.tokens.embedding)


def test_plain_positions_count_and_go_on_behind_a_cache(trunk: Build, tokens: Make) -> None:
    built, given = trunk(), tokens()
    counted = given.replace(position=torch.arange(6).view(1, 6, 1).expand(2, -1, -1))
    torch.testing.assert_close(states(built, given), states(built, counted))
    cache = built.new_cache()
    with torch.no_grad():
        built(given.replace(embedding=given.embedding[:, :4]), cache)
        tail = built(Tokens(embedding=given.embedding[:, 4:]), cache).tokens.embedding
    torch.testing.assert_close(tail, states(built, given)[:, 4:])


def test_two_documents_packed_in_a_row_equal_two_rows(trunk: Build, tokens: Make) -> None:
    built, given = trunk(), tokens(1, 10)
    document = torch.tensor([[0] * 4 + [1] * 6])
    position = torch.tensor([[*range(4), *range(6)]])[..., None]
    packed = states(built, given.replace(document=document, position=position))
    for start, stop in ((0, 4), (4, 10)):
        alone = states(built, Tokens(embedding=given.embedding[:, start:stop]))
        torch.testing.assert_close(packed[:, start:stop], alone)


@pytest.mark.parametrize(("rows", "length"), [(0, 4), (2, 0), (1, 1)])
def test_few_tokens(trunk: Build, tokens: Make, rows: int, length: int) -> None:
    assert tuple(states(trunk(), tokens(rows, length)).shape) == (rows, length, 16)


def test_noise_is_fixed_by_the_seed_and_differs_between_layers(trunk: Build, tokens: Make) -> None:
    noisy = {
        **plain(),
        "ffn": {**MOE, "router": {"type": "top_k", "k": 1, "normalize": "all", "gate": {"jitter": 0.9}}},
    }
    built = trunk(noisy, noisy).train()
    given = tokens(4, 40)

    def choices(seed: int | None) -> list[torch.Tensor]:
        with torch.no_grad():
            return [r.routing.expert for r in built(given, seed=seed).records]

    one, again, two, calm = choices(1), choices(1), choices(2), choices(None)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], two[0]) and not torch.equal(one[0], calm[0])


def test_the_norm_computes_in_float32_and_keeps_the_dtype() -> None:
    norm, x = RMSNorm(8, eps=1e-6).to(torch.bfloat16), 300 * torch.randn(3, 8).to(torch.bfloat16)
    wide = x.float()
    expected = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), expected.to(torch.bfloat16))


@pytest.mark.parametrize("rows", [1, 3])
def test_the_norm_without_a_graph_is_the_norm(rows: int) -> None:
    """One row, as in decoding, is computed on its own; a row of zeros, as padding has, stays finite."""
    norm, x = RMSNorm(8, eps=1e-6), torch.randn(1, rows, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 8))
        for states in (x, 1e-3 * x, torch.zeros_like(x)):
            expected = torch.nn.functional.rms_norm(states, (8,), norm.weight, 1e-6)
            torch.testing.assert_close(norm(states), expected)


def test_the_final_norm_can_have_an_epsilon_of_its_own(trunk: Build) -> None:
    built = trunk(plain(), norm_eps=1e-5, final_eps=1e-2)
    assert built.norm.eps == 1e-2 and built.blocks[0].attention_norm.eps == 1e-5
    assert trunk(plain(), norm_eps=1e-5).norm.eps == 1e-5
    with pytest.raises(ValueError, match="final_eps: got 0"):
        trunk(plain(), final_eps=0.0)
