"""Attention whose heads are experts: equal to multi-head attention where all heads serve all tokens, and to its own
readable form where they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modalities.base import Tokens
from zoo.backbone.attention.base import AttentionSpec
from zoo.backbone.attention.selective import Selective
from zoo.backbone.context import BlockContext
from zoo.backbone.mask import visibility
from zoo.backbone.rope import RopeSpec, rotation
from zoo.backbone.trunk import Backbone, BackboneSpec
from zoo.moe.balance.step import BalanceStep
from zoo.moe.routing import RoutingContext
from zoo.spec import SpecError, parse

DIM, HEADS, LENGTH = 8, 2, 6
ALL: dict[str, Any] = {"type": "expert_choice", "share": 1.0, "weight": "unit"}


def build(router: dict[str, Any], **keys: Any) -> Selective:
    plain = {"type": "selective", "heads": HEADS, "router": router, "allow_future": True, **keys}
    torch.manual_seed(0)
    module = parse(AttentionSpec, plain).build(DIM, 0, 1e-6).double()
    assert isinstance(module, Selective)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def context(x: Tensor, *, turned: bool = False, **fields: Tensor) -> BlockContext:
    tokens = Tokens(embedding=x, **fields)
    position = torch.arange(x.shape[1])[None, :, None] * (1 if turned else 0)
    rope = {DIM // HEADS: rotation(position, RopeSpec(), DIM // HEADS)}
    return BlockContext(routing=RoutingContext.of(tokens), rope=rope, visible=visibility(tokens, None, {None}))


def answer(module: Selective, x: Tensor, ctx: BlockContext | None = None) -> Tensor:
    """What the module answers inside a block."""
    ctx = ctx or context(x)
    module.now = ctx.routing
    try:
        return module(x, ctx)
    finally:
        module.now = None


def states(rows: int = 2, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_twin(module: Selective, kept: tuple[int, ...] = (0, 1)) -> nn.MultiheadAttention:
    """torch's own module with the same maps, the output maps of other heads set to zero."""
    twin = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    maps = module.maps
    keep = torch.tensor([h in kept for h in range(HEADS)])[:, None, None]
    with torch.no_grad():
        twin.in_proj_weight.copy_(maps.qkv.transpose(0, 1).flatten(0, 2))
        assert maps.qkv_bias is not None and module.out_bias is not None
        twin.in_proj_bias.copy_(maps.qkv_bias.transpose(0, 1).flatten())
        twin.out_proj.weight.copy_((maps.o * keep).transpose(0, 1).flatten(1))
        twin.out_proj.bias.copy_(module.out_bias)
    return twin


@pytest.mark.parametrize("causal", [True, False])
def test_all_heads_on_all_tokens_are_multi_head_attention_with_its_gradients(causal: bool) -> None:
    module = build(ALL, bias=True, out_bias=True)
    twin, x = plain_twin(module), states().requires_grad_()
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1) if causal else None
    expected, _ = twin(x, x, x, attn_mask=later, need_weights=False)
    everything = torch.full((2, LENGTH), not causal)
    ctx = context(x, span=torch.zeros(2, LENGTH, dtype=torch.int64), bidirectional=everything)
    y = answer(module, x, ctx)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(y)
    found = torch.autograd.grad((y * weight).sum(), [x, module.maps.qkv, module.maps.o])
    wanted = torch.autograd.grad((expected * weight).sum(), [x, twin.in_proj_weight, twin.out_proj.weight])
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1].transpose(0, 1).flatten(0, 2), wanted[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[2].transpose(0, 1).flatten(1), wanted[2], rtol=0, atol=1e-12)


def test_some_heads_on_all_tokens_are_attention_without_the_others() -> None:
    module, x = build(ALL, bias=True, out_bias=True), states()
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    ctx = context(x)
    barred = torch.tensor([True, False]).expand(2 * LENGTH, -1)
    y = answer(module, x, replace(ctx, routing=ctx.routing.replace(exclude=barred)))
    expected, _ = plain_twin(module, kept=(1,))(x, x, x, attn_mask=later, need_weights=False)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


ROUTERS: list[dict[str, Any]] = [
    {"type": "expert_choice", "share": 0.5},
    {"type": "expert_choice", "share": 0.4, "offers": 1, "fill": True},
    {"type": "expert_choice", "select": "threshold"},
    {"type": "top_k", "k": 1, "normalize": "all"},
    {"type": "sequence_choice", "k": 1, "normalize": "all"},
]


@pytest.mark.parametrize("router", ROUTERS)
def test_each_head_attends_among_its_tokens_at_their_own_positions(router: dict[str, Any]) -> None:
    """Against one query at a time."""
    module, x = build(router, bias=True), states(seed=3)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :2] = False
    ctx = context(x, turned=True, mask=mask)
    module.now = ctx.routing
    y, routing = module(x, ctx), module.heard[-1].routing
    query, key, value = module.maps.project(x[:, None])
    rope = ctx.rope[DIM // HEADS]
    query, key = rope.turn(query), rope.turn(key)
    expected = torch.zeros_like(x)
    for row in range(2):
        for head in range(HEADS):
            slots = (routing.expert.view(2, LENGTH, -1)[row] == head).nonzero()
            for place, slot in slots.tolist():
                seen = [t for t, _ in slots.tolist() if t <= place]
                share = torch.softmax(key[row, head, seen] @ query[row, head, place] / (DIM // HEADS) ** 0.5, dim=0)
                gate = routing.gate.view(2, LENGTH, -1)[row, place, slot]
                expected[row, place] += gate * (module.maps.o[head] @ (share @ value[row, head, seen]))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert not y[0, :2].any()


def test_gathered_tokens_return_to_their_own_places() -> None:
    """Values that hold a token's number, each token seeing itself alone, come back at its place."""
    module = build({"type": "expert_choice", "share": 0.5, "weight": "unit"})
    x = states(seed=4)
    with torch.no_grad():
        module.maps.qkv[:, 2] = torch.eye(DIM)[:4].double()
        module.maps.o.zero_()
        module.maps.o[:, :4] = torch.eye(4).double()
    x[..., 0] = torch.arange(2 * LENGTH).view(2, LENGTH)
    ctx = context(x, document=torch.arange(LENGTH).expand(2, -1))
    ctx = replace(ctx, routing=ctx.routing.replace(document=None))
    module.now = ctx.routing
    y = module(x, ctx)
    times = module.heard[-1].routing.full.sum(1).view(2, LENGTH)
    assert torch.equal(y[..., 0], times * x[..., 0])


def test_selection_by_top_looks_ahead_and_a_threshold_does_not() -> None:
    x, other = states(1, seed=5), states(1, seed=5)
    other[:, 4:] = states(1, seed=6)[:, 4:]
    for router, same in ((ROUTERS[0], False), (ROUTERS[2], True), (ALL, True)):
        module = build(router)
        before, after = answer(module, x), answer(module, other)
        assert torch.allclose(before[:, :4], after[:, :4], rtol=0, atol=1e-12) == same


def test_what_looks_ahead_is_refused_in_a_causal_trunk() -> None:
    with pytest.raises(SpecError, match="router: lets later tokens matter"):
        build(ROUTERS[0], allow_future=False)
    with pytest.raises(SpecError, match="heads: got 0"):
        build(ALL, heads=0)


def test_the_gate_learns_through_its_weights() -> None:
    for router, learns in ((ROUTERS[0], True), ({**ROUTERS[0], "weight": "unit"}, False)):
        module = build(router)
        (found,) = torch.autograd.grad(
            answer(module, states()).square().sum(), list(module.router.parameters()), allow_unused=True
        )
        assert (found is not None and bool(found.any())) == learns


def trunk(router: dict[str, Any], checkpoint: bool = False) -> Backbone:
    attention = {"type": "selective", "heads": HEADS, "router": router, "allow_future": True,
                 "balance": [{"type": "switch", "weight": 1.0}]}  # fmt: skip
    moe = {"type": "moe", "routed": 3, "experts": {"type": "swiglu", "hidden": 4}, "router": {"type": "top_k", "k": 2}}
    block = {"type": "sequential", "attention": attention, "ffn": moe}
    torch.manual_seed(1)
    return parse(
        BackboneSpec, {"dim": DIM, "layers": [{"repeat": 2, "block": block}], "checkpoint": checkpoint}
    ).build()


def test_heads_are_an_moe_layer_to_balance_and_records() -> None:
    found = []
    for checkpoint in (False, True):
        model = trunk(ROUTERS[3], checkpoint).train()
        out = model(Tokens(embedding=states().float()))
        layers = model.moe_layers()
        assert [layer.pool.experts for layer in layers] == [r.routing.experts for r in out.records] == [3, 2, 3, 2]
        step = BalanceStep(layers)
        step.add(out.records)
        loss = sum(step.losses(out.records, 0).values(), torch.zeros(()))
        (loss + out.tokens.embedding.sum()).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert all(int(r.stats.tokens) == 12 for r in out.records)
    torch.testing.assert_close(found[0], found[1])


def test_cost_is_that_of_the_module() -> None:
    model = trunk(ROUTERS[0])
    assert model.spec.cost().total == sum(p.numel() for p in model.parameters())
    spec = model.spec.layers[0].block.attention  # type: ignore[attr-defined]
    whole = replace(spec, router=replace(spec.router, share=1.0))
    gate = spec.router.cost(DIM, spec.layer(4).pool).flops
    assert spec.cost(DIM, 0).flops - gate == (whole.cost(DIM, 0).flops - gate) / 2  # half of the tokens in the maps
    products = [s.cost(DIM, 100).flops - s.cost(DIM, 0).flops for s in (spec, whole)]
    assert products[0] == products[1] / 4  # and a quarter of the products


def test_outside_of_a_block_it_says_so() -> None:
    module = build(ALL)
    with pytest.raises(RuntimeError, match="outside of its block"):
        module(states(), context(states()))


def counted(share: float) -> int:
    """Operations that torch counts in the maps and products of one pass over 32 tokens, without the gate."""
    module = build({**ALL, "share": share})
    x, mask = states(2, 32), torch.ones(2, 32, dtype=torch.bool)
    everything = torch.ones(2, 32, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        answer(module, x, context(x, mask=mask, bidirectional=everything))
    return counter.get_total_flops() - 2 * 64 * DIM * HEADS


def test_operations_are_those_of_the_tokens_that_heads_serve() -> None:
    maps, products = 64 * 2 * 4 * DIM * DIM, 2 * 4 * DIM * 32 * 32
    assert counted(1.0) in (maps, maps + products)  # torch does not count every fused product
    assert counted(0.5) in (maps // 2, maps // 2 + products // 4)


@pytest.mark.parametrize("router", [ROUTERS[0], ROUTERS[3]])
def test_gradients_are_derivatives(router: dict[str, Any]) -> None:
    module, x = build(router, bias=True, out_bias=True), states(seed=7).requires_grad_()
    parameters = [x, *module.parameters()]
    assert torch.autograd.gradcheck(
        lambda x, *_: answer(module, x, context(x, turned=True)), parameters, fast_mode=True
    )
