"""ScMoE (arXiv 2404.05019) as settings of the shortcut block, and its double gating: exact identities in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.blocks.double_gating import DoubleGating
from zoo.backbone.blocks.shortcut import Shortcut
from zoo.backbone.trunk import Backbone, BackboneOutput, BackboneSpec
from zoo.laws.cases import draw_
from zoo.moe.layer import MoE
from zoo.moe.routing import Routing, RoutingContext
from zoo.spec import Plain, SpecError, parse

DIM = 8
ATTENTION: Plain = {"heads": 2}
DENSE: Plain = {"type": "dense", "hidden": 10}
MOE: Plain = {
    "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 10},
    "router": {"type": "top_k", "k": 1, "normalize": "all"}, "balance": [{"type": "switch"}],
}  # fmt: skip


class Late(NamedTuple):
    """What is needed to do all routed work at its end."""

    x: Tensor
    routing: Routing
    ctx: RoutingContext


def trunk(*blocks: Plain) -> Backbone:
    layers = [{"block": block} for block in blocks]
    built = parse(BackboneSpec, {"dim": DIM, "layers": layers}).build().double()
    draw_(built, 0)
    return built.eval()


def scmoe(**keys: Any) -> Plain:
    return {"type": "shortcut", "attention": ATTENTION, "dense": [DENSE, DENSE], "moe": MOE, **keys}


def double(**keys: Any) -> Plain:
    return {"type": "double_gating", "attention": ATTENTION, "dense": [DENSE], "moe": MOE, **keys}


def states() -> Tensor:
    return torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(built: Backbone, x: Tensor) -> BackboneOutput:
    with torch.no_grad():
        return built(Tokens(embedding=x), output_hidden=True)


def logits(moe: MoE, x: Tensor) -> Tensor:
    return x @ dict(moe.router.named_parameters())["gate.weight"].T


def expert(moe: MoE, number: int, x: Tensor) -> Tensor:
    """What one expert answers, written out."""
    weights = dict(moe.experts.named_parameters())
    gate, up = (x @ weights["gate_up"][number].T).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up) @ weights["down"][number].T


def test_the_published_equations_at_position_2() -> None:
    """H_mh, H_mlp, and H + SE(H) + G(H_mh[l]) E(H_mh[l]) with CG-1, sub-layers and norms written out."""
    built, x = trunk(scmoe(combine="sigmoid")), states()
    block = built.blocks[0]
    assert isinstance(block, Shortcut) and block.moe_norm is not None and block.combine is not None
    ctx = built._context(Tokens(embedding=x), None, None, None)
    with torch.no_grad():
        first = x + block.attention[0](block.attention_norm[0](x), ctx)
        second = first + block.dense[0](block.dense_norm[0](first))
        third = second + block.attention[1](block.attention_norm[1](second), ctx)
        u, v = block.dense_norm[1](third), block.moe_norm(first).flatten(0, 1)
        share, best = logits(block.moe, v).softmax(-1).max(-1)
        routed = torch.zeros_like(v)
        for e in range(4):
            routed += torch.where(best == e, share, 0)[:, None] * expert(block.moe, e, v)
        expected = third + torch.sigmoid(u @ block.combine.weight.T) * block.dense[1](u) + routed.view_as(x)
    torch.testing.assert_close(run(built, x).hidden[0], expected)


@pytest.mark.parametrize(("source", "reads"), [("input", 0), ("attention", 1), ("output", 2)])
def test_routing_waits_for_nothing_behind_its_source(source: str, reads: int) -> None:
    """Only the sub-layers before the source leave a gradient in the routed branch: the path is free of the others."""
    built = trunk(scmoe(source=source))
    block = built.blocks[0]
    assert isinstance(block, Shortcut)
    raw = built(Tokens(embedding=states())).records[0].routing.raw
    before = [block.attention[0], block.dense[0], block.attention[1], block.dense[1]]
    for i, module in enumerate(before):
        found = torch.autograd.grad(raw.sum(), list(module.parameters()), retain_graph=True, allow_unused=True)
        assert all((g is not None) == (i < reads) for g in found), (source, i)


def test_the_current_state_as_source_is_a_plain_shared_expert() -> None:
    """One sub-layer that reads its own state after attention through the same norm."""
    own = trunk(scmoe(dense=[DENSE], source="attention"))
    plain = trunk({"type": "sequential", "attention": ATTENTION, "ffn": {**MOE, "shared": {"hidden": 10}}})
    block = own.blocks[0]
    assert isinstance(block, Shortcut) and block.moe_norm is not None
    block.moe_norm.load_state_dict(block.dense_norm[0].state_dict())
    names = {
        "attention.0.": "attention.", "attention_norm.0.": "attention_norm.", "dense_norm.0.": "ffn_norm.",
        "dense.0.": "ffn.shared_experts.", "moe.": "ffn.",
    }  # fmt: skip
    state = {}
    for key, value in block.state_dict().items():
        for theirs, ours in names.items():
            if key.startswith(theirs):
                state[ours + key.removeprefix(theirs)] = value
    plain.blocks[0].load_state_dict(state)
    torch.testing.assert_close(run(own, states()).hidden[0], run(plain, states()).hidden[0])


def test_a_certain_sigmoid_is_the_plain_sum() -> None:
    added, weighed = trunk(scmoe()), trunk(scmoe(combine="sigmoid", combine_bias=True))
    weighed.load_state_dict(added.state_dict(), strict=False)
    block = weighed.blocks[0]
    assert isinstance(block, Shortcut) and block.combine is not None
    torch.nn.init.zeros_(block.combine.weight)
    torch.nn.init.constant_(block.combine.bias, 100.0)
    torch.testing.assert_close(run(weighed, states()).hidden[0], run(added, states()).hidden[0])


def test_moe_in_every_block_reads_the_block_before_and_first_the_embedding() -> None:
    """Position 1: with one sub-layer the block's input is the output of the block before."""
    built, x = trunk(*[scmoe(dense=[DENSE], source="input")] * 2), states()
    out = run(built, x)
    for i, source in enumerate((x, out.hidden[0])):
        block = built.blocks[i]
        assert isinstance(block, Shortcut) and block.moe_norm is not None
        read = block.moe_norm(source).flatten(0, 1)
        torch.testing.assert_close(out.records[i].routing.raw, logits(block.moe, read).detach())


def test_work_begun_early_is_work_done_late_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """`start` before the dense path, or everything after it: the same bits."""
    built, found = trunk(scmoe()), []
    block = built.blocks[0]
    assert isinstance(block, Shortcut)
    start, finish = block.moe.start, block.moe.finish
    for _ in ("early", "late"):
        built.zero_grad()
        out = built(Tokens(embedding=states())).tokens.embedding
        out.square().sum().backward()
        found.append([out.detach(), *[p.grad.clone() for p in built.parameters() if p.grad is not None]])
        monkeypatch.setattr(block.moe, "start", Late)
        monkeypatch.setattr(block.moe, "finish", lambda late: finish(start(late.x, late.routing, late.ctx)))
    assert len(found[0]) == len(found[1]) and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("keys", [{}, {"source": "output"}, {"source": "input", "dense": []}])
@pytest.mark.parametrize("k", [1, 2])
def test_double_gating_never_takes_an_expert_twice(keys: Plain, k: int) -> None:
    moe = {**MOE, "router": {"type": "top_k", "k": k, "normalize": "all"}}
    built = trunk(double(moe=moe, **keys))
    block = built.blocks[0]
    assert isinstance(block, DoubleGating)
    block.current.router.load_state_dict(block.early.router.state_dict())  # so that both like the same experts
    early, current = (record.routing for record in run(built, states()).records)
    assert bool((early.expert[:, :, None] != current.expert[:, None]).all())
    assert bool(early.full.all()) and bool(current.full.all())
    wanted = current.logits.topk(k, dim=-1).indices
    same = (wanted[:, :, None] == early.expert[:, None]).any(-1)
    assert bool(same.any())  # it would have
    free = ~same.any(-1)
    assert torch.equal(current.expert[free], wanted[free])


def test_double_gating_by_hand() -> None:
    """Both states' answers of the same experts, added to the current state."""
    built, x = trunk(double()), states()
    block = built.blocks[0]
    assert isinstance(block, DoubleGating) and block.current.experts is block.early.experts
    out = run(built, x)
    ctx = built._context(Tokens(embedding=x), None, None, None)
    with torch.no_grad():
        first = x + block.attention[0](block.attention_norm[0](x), ctx)
        second = first + block.dense[0](block.ffn_norm[0](first))
        third = second + block.attention[1](block.attention_norm[1](second), ctx)
        expected = third.flatten(0, 1).clone()
        for state, norm, record in zip((first, third), (block.early_norm, block.ffn_norm[1]), out.records, strict=True):
            u = norm(state).flatten(0, 1)
            for token, (e,) in enumerate(record.routing.expert.tolist()):
                share = record.routing.logits[token].softmax(-1)[e]
                expected[token] += share * expert(block.early, e, u[token])
    torch.testing.assert_close(out.hidden[0].flatten(0, 1), expected)


def test_double_gating_holds_its_experts_once() -> None:
    built = trunk(double(moe={**MOE, "out_bias": True, "null_experts": {"constant": 1}, "shared": {"hidden": 4}}))
    names = [name for name, _ in built.named_parameters()]
    assert len(names) == len(built.state_dict()) and not any("current" in n and "router" not in n for n in names)
    assert built.spec.cost().total == sum(p.numel() for p in built.parameters())
    assert len(built.moe_layers()) == len(run(built, states()).records) == 2


@pytest.mark.parametrize("gate", ["residual", "recurrent"])
def test_double_gating_takes_gates_that_look_back(gate: str) -> None:
    """The current state's router comes after the early state's, and before that of the next block."""
    router = {"type": "top_k", "k": 1, "normalize": "all", "gate": {"type": gate}}
    built = trunk(*[double(moe={**MOE, "router": router})] * 2)
    assert built.spec.cost().total == sum(p.numel() for p in built.parameters())
    out = built(Tokens(embedding=states()))
    out.tokens.embedding.square().sum().backward()
    first = next(built.blocks[0].early.router.parameters())  # type: ignore[union-attr]
    assert len(out.records) == 4 and first.grad is not None and bool(first.grad.any())


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (double(dense=[]), "source: got 'attention' with one sub-layer"),
        (double(moe={**MOE, "router": {"type": "top_k", "k": 3}}), "moe.routed: two states choose 6 different experts"),
        (double(moe=DENSE), "moe: expected a layer of type moe"),
        (double(dense=[MOE]), "dense: expected networks of type dense"),
        (double(attention={"heads": 3}), "attention.heads"),
        (scmoe(combine_bias=True), "combine_bias: got true with combine add"),
    ],
)
def test_refuses(block: Plain, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        trunk(block)
