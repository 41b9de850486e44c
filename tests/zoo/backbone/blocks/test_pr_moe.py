"""PR-MoE (DeepSpeed-MoE, arXiv 2201.05596): residual layers as shortcut blocks of one sub-layer, and pyramids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.blocks.shortcut import Shortcut
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.laws.cases import draw_
from zoo.spec import Plain, parse

DIM = 8
DENSE: Plain = {"type": "dense", "hidden": 10}
MOE: Plain = {
    "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 10}, "allow_future": True,
    "router": {"type": "top_k", "k": 1, "normalize": "selected", "allow_constant": True},
}  # fmt: skip


def residual(combine: str, **moe: Any) -> Plain:
    """y = c0 MoE(x) + c1 MLP(x), the coefficients 1 or softmax(x W + b)."""
    return {
        "type": "shortcut", "attention": {"heads": 2}, "dense": [DENSE], "own_norm": False, "combine": combine,
        "combine_bias": combine == "softmax", "moe": {**MOE, **moe},
    }  # fmt: skip


def built(block: Plain) -> tuple[Backbone, Shortcut]:
    trunk = parse(BackboneSpec, {"dim": DIM, "layers": [{"block": block}]}).build().double()
    draw_(trunk, 0)
    found = trunk.eval().blocks[0]
    assert isinstance(found, Shortcut)
    return trunk, found


def alike_(block: Shortcut) -> None:
    """Makes every expert the dense network."""
    weights = dict(block.dense[0].named_parameters())
    with torch.no_grad():
        for name, expert in block.moe.experts.named_parameters():
            expert.copy_(weights[name].expand_as(expert))


def after(trunk: Backbone, block: Shortcut, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[T, D] what the layer added, what its dense network answers, and [T, 2] the softmax of its coefficients (dense
    network first)."""
    ctx = trunk._context(Tokens(embedding=x), None, None, None)
    with torch.no_grad():
        state = x + block.attention[0](block.attention_norm[0](x), ctx)
        u = block.dense_norm[0](state)
        out = trunk(Tokens(embedding=x), output_hidden=True).hidden[0] - state
        share = torch.zeros(*u.shape[:2], 2) if block.combine is None else block.combine(u).softmax(-1)
        return out.flatten(0, 1), block.dense[0](u).flatten(0, 1), share.flatten(0, 1)


def states() -> Tensor:
    return torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("combine", "times"), [("softmax", 1.0), ("add", 2.0)])
def test_experts_like_the_network_beside_them(combine: str, times: float) -> None:
    """All alike, the gate 1, nothing dropped: once the network where coefficients sum to 1, else twice."""
    trunk, block = built(residual(combine))
    alike_(block)
    out, dense, _ = after(trunk, block, states())
    torch.testing.assert_close(out, times * dense)


def test_a_coefficient_of_zero_leaves_the_dense_network() -> None:
    trunk, block = built(residual("softmax"))
    assert block.combine is not None
    with torch.no_grad():
        block.combine.bias.copy_(torch.tensor([1e3, 0.0]))
    out, dense, _ = after(trunk, block, states())
    torch.testing.assert_close(out, dense)


def test_a_dropped_token_keeps_the_share_of_the_dense_network() -> None:
    """Capacity for three of twelve tokens per expert."""
    policy = [{"type": "capacity", "factor": 1.0, "priority": "position", "reweigh": False}]
    trunk, block = built(residual("softmax", policy=policy))
    alike_(block)
    x = states()
    with torch.no_grad():
        routing = trunk(Tokens(embedding=x)).records[0].routing
    out, dense, share = after(trunk, block, x)
    kept = routing.full[:, 0]
    assert 0 < int(kept.sum()) < 12
    torch.testing.assert_close(out[kept], dense[kept])
    torch.testing.assert_close(out[~kept], (share[:, :1] * dense)[~kept])


def gpt(dim: int, layers: int, experts: list[int], beside: bool) -> float:
    """Parameters in billions: GPT with an MoE layer of gelu networks in every second layer, a dense network beside the
    expert where asked for. Dense networks are gated ones of two thirds of the width, so as large."""
    attention = {"heads": 16, "bias": True, "out_bias": True}
    dense = {"type": "dense", "hidden": round(8 * dim / 3), "bias": True}
    plain = {"type": "sequential", "attention": attention, "ffn": dense}
    blocks, rest = [], list(experts)
    for i in range(layers):
        if i % 2 == 0 or not rest:
            blocks.append(plain)
            continue
        moe = {
            "type": "moe", "routed": rest.pop(0), "experts": {"type": "gelu", "hidden": 4 * dim, "bias": True},
            "router": {"type": "top_k", "k": 1, "normalize": "all"},
        }  # fmt: skip
        one: Plain = {"type": "shortcut", "attention": attention, "dense": [dense], "own_norm": False, "moe": moe}
        one |= {"combine": "softmax", "combine_bias": True}
        blocks.append(one if beside else {**plain, "ffn": moe})
    assert not rest
    trunk = parse(BackboneSpec, {"dim": dim, "norm": "layer", "layers": [{"block": block} for block in blocks]})
    return (trunk.cost().total + (50257 + 2048) * dim) / 1e9


@pytest.mark.parametrize(
    ("dim", "layers", "experts", "beside", "expected"),
    [
        (1024, 24, [], False, 0.356),
        (1024, 24, [128] * 12, False, 13.15),
        (1024, 24, [32] * 10 + [64] * 2, True, 4.12),
        (1024, 21, [32] * 8 + [64] * 2, True, 3.54),
        (2048, 24, [], False, 1.316),
        (2048, 24, [128] * 12, False, 52.47),
        (2048, 24, [64] * 10 + [128] * 2, True, 31.39),
        (2048, 21, [64] * 8 + [128] * 2, True, 26.94),
    ],
)
def test_published_sizes(dim: int, layers: int, experts: list[int], beside: bool, expected: float) -> None:
    assert gpt(dim, layers, experts, beside) == pytest.approx(expected, rel=2e-3)
