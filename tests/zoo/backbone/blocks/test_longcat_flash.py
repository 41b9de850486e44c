"""LongCat-Flash (arXiv 2509.01322) as settings of block, attention and router: what its report lets one compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.attention.latent import Latent, LatentSpec
from zoo.backbone.blocks.shortcut import Shortcut, ShortcutSpec
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.laws.cases import draw_
from zoo.moe.experts.ffn import SwiGLUSpec
from zoo.moe.layer import MoE
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.spec import Plain, parse


def block(copies: int, **sizes: Any) -> Plain:
    """The published block, tiny unless sizes say otherwise."""
    moe: Plain = {
        "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 6}, "null_experts": {"copy": copies},
        "router": {"type": "top_k", "k": 2, "normalize": "all", "scale": 6.0, "bias": True},
    }  # fmt: skip
    attention = {
        "type": "latent", "heads": 2, "q_rank": 4, "kv_rank": 6, "nope_dim": 4, "rope_dim": 2, "value_dim": 4,
        "rank_scale": True,
    }  # fmt: skip
    plain: Plain = {"type": "shortcut", "attention": attention, "dense": [{"hidden": 10}] * 2, "own_norm": False}
    return {**plain, "moe": moe, **sizes}


def trunk(copies: int, repeat: int) -> Backbone:
    layers = [{"repeat": repeat, "block": block(copies)}]
    built = parse(BackboneSpec, {"dim": 8, "rope": {"pairs": "adjacent"}, "layers": layers}).build().double()
    draw_(built, 0)
    return built.eval()


def test_a_token_whose_experts_are_all_identities_is_scaled() -> None:
    """scale * sum(g) * u, g being the probabilities of the two chosen identities, however the bias chose them."""
    built = trunk(copies=3, repeat=1)
    first = built.blocks[0]
    assert isinstance(first, Shortcut) and first.moe.router.bias is not None
    first.moe.router.bias[4:] = 2.0
    u = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = first.moe(u, RoutingContext(shape=(1, 5), mask=torch.ones(5, dtype=torch.bool)))
    probability = out.routing.logits.softmax(-1)
    assert bool((out.routing.expert >= 4).all())
    total = probability.gather(1, out.routing.expert).sum(-1, keepdim=True)
    torch.testing.assert_close(out.y, 6.0 * total * u)


def test_a_stack_whose_second_copy_answers_nothing_is_the_small_model() -> None:
    small, large = trunk(copies=0, repeat=1), trunk(copies=0, repeat=2)
    state = small.state_dict()
    large.load_state_dict(state | {k.replace("blocks.0", "blocks.1"): v for k, v in state.items() if "blocks" in k})
    with torch.no_grad():
        for name, weight in large.blocks[1].named_parameters():
            if name.endswith(("o.weight", "down")):
                weight.zero_()
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(large(Tokens(embedding=x)).tokens.embedding, small(Tokens(embedding=x)).tokens.embedding)


def test_published_parameters_of_a_token() -> None:
    """18.694 B without the input embedding, and 1.05696 B more for every network that a token chose."""
    attention = {
        "type": "latent", "heads": 64, "q_rank": 1536, "kv_rank": 512, "nope_dim": 128, "rope_dim": 64,
        "value_dim": 128, "rank_scale": True,
    }  # fmt: skip
    moe = {
        "type": "moe", "routed": 512, "experts": {"type": "swiglu", "hidden": 2048}, "null_experts": {"copy": 256},
        "router": {"type": "top_k", "k": 12, "normalize": "all", "scale": 6.0, "bias": True},
    }  # fmt: skip
    sizes = {"attention": attention, "dense": [{"hidden": 12288}] * 2, "moe": moe}
    spec = parse(BackboneSpec, {"dim": 6144, "layers": [{"repeat": 28, "block": block(256, **sizes)}]})
    layer = spec.layers[0].block
    assert isinstance(layer, ShortcutSpec)
    each = 28 * layer.moe.experts.cost(6144).active / 1e9
    none = (spec.cost().active + 131072 * 6144) / 1e9 - 8 * each  # an even load chooses 8 networks
    assert each == pytest.approx(1.05696, abs=1e-5)
    assert [none + count * each for count in (0, 8, 12)] == pytest.approx([18.694, 27.15, 31.38], abs=5e-3)


def test_published_factors_of_the_ranks() -> None:
    spec = LatentSpec(heads=1, q_rank=1536, kv_rank=512, nope_dim=2, rope_dim=2, value_dim=2, rank_scale=True)
    with torch.device("meta"):
        module = spec.build(6144, 0, 1e-5)
    assert isinstance(module, Latent)
    assert (module.q_factor, module.kv_factor) == pytest.approx((2.0, 3.4641), abs=1e-4)


@pytest.mark.parametrize("ranks", [(64, 32), (32, 128), (128, 16)])
@pytest.mark.parametrize("scaled", [True, False])
def test_queries_and_keys_start_at_one_deviation(ranks: tuple[int, int], scaled: bool) -> None:
    """With one deviation for all matrices: without the factors, queries are sqrt(d_q / d) and keys sqrt(d_kv / d) times
    the rotary key, which is read from the state directly."""
    torch.manual_seed(0)
    dim, (q_rank, kv_rank) = 256, ranks
    spec = LatentSpec(
        heads=8, q_rank=q_rank, kv_rank=kv_rank, nope_dim=16, rope_dim=32, value_dim=16, rank_scale=scaled
    )
    module = spec.build(dim, 0, 1e-6)
    assert isinstance(module, Latent)
    for linear in (module.q_down, module.q_up, module.kv_down, module.kv_up):
        torch.nn.init.normal_(linear.weight, std=0.02)
    x = torch.randn(400, dim)
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    with torch.no_grad():
        latent, rotary = module.kv_down(x).split([kv_rank, 32], dim=-1)
        query = module.q_factor * module.q_up(module.q_norm(module.q_down(x)))
        key = module.kv_up(module.kv_factor * module.kv_norm(latent)).unflatten(-1, (8, 32))[..., :16]
    expected = (1.0, 1.0) if scaled else ((q_rank / dim) ** 0.5, (kv_rank / dim) ** 0.5)
    assert (float(query.std() / rotary.std()), float(key.std() / rotary.std())) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("m", [2, 4])
def test_gamma_gives_split_experts_the_variance_of_whole_ones(m: int) -> None:
    """Eq. 8: m k experts of a width of 1 / m, weighed 1 / (m k), have 1 / m^2 of the variance, which m undoes."""

    def variance(split: int, gamma: float) -> float:
        torch.manual_seed(0)
        router = TopKSpec(k=2 * split, scale=gamma)
        spec = MoESpec(routed=8 * split, experts=SwiGLUSpec(hidden=64 // split), router=router, backend="grouped")
        moe = MoE(spec, 64)
        for weight in moe.parameters():
            torch.nn.init.normal_(weight, std=0.02)
        torch.nn.init.normal_(moe.router.gate.weight, std=1e-4)  # type: ignore[arg-type,union-attr]
        x: Tensor = torch.randn(1000, 64)
        with torch.no_grad():
            return float(moe(x, RoutingContext(shape=(1, 1000), mask=torch.ones(1000, dtype=torch.bool))).y.var())

    whole = variance(1, 1.0)
    assert variance(m, 1.0) == pytest.approx(whole / m**2, rel=0.1)
    assert variance(m, float(m)) == pytest.approx(whole, rel=0.1)
