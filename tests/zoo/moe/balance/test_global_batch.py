"""Balance over the global batch (arXiv 2501.11873): ranks, accumulation, and what known libraries got wrong there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.moe.balance.base import BalanceSpec
from zoo.moe.balance.bias import BiasSpec
from zoo.moe.balance.step import BalanceStep
from zoo.moe.balance.switch import SwitchSpec
from zoo.moe.experts.ffn import SwiGLUSpec
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec


def build(*rules: BalanceSpec) -> MoE:
    """A layer of eight experts in float64, the same at every call."""
    torch.manual_seed(0)
    bias = any(rule.needs_bias for rule in rules)
    spec = MoESpec(routed=8, experts=SwiGLUSpec(hidden=4), router=TopKSpec(bias=bias), balance=rules)
    layer = MoE(spec, 8).double()
    for parameter in layer.router.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def domains(sizes: Sequence[int]) -> list[Tensor]:
    """Tokens [n_i, 8] of one domain each: domains point into different directions."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for size in sizes:
        centre = 3 * torch.randn(1, 8, generator=generator, dtype=torch.float64)
        found.append(centre + torch.randn(size, 8, generator=generator, dtype=torch.float64))
    return found


def record(layer: MoE, x: Tensor) -> LayerRecord:
    out = layer(x, RoutingContext(shape=(1, len(x)), mask=torch.ones(len(x), dtype=torch.bool)))
    return LayerRecord(out.routing, out.stats, (1, len(x)))


def loss_and_gradient(layer: MoE, total: Tensor) -> tuple[float, Tensor]:
    found = torch.autograd.grad(total, list(layer.router.parameters()))
    return float(total.detach()), torch.cat([g.flatten() for g in found])


def alone(rule: SwitchSpec, parts: Sequence[Tensor]) -> tuple[float, Tensor]:
    """Loss and router gradient of one process on the whole batch."""
    layer, x = build(rule), torch.cat(list(parts))
    whole = record(layer, x)
    step = BalanceStep([layer])
    step.add([whole])
    return loss_and_gradient(layer, step.losses([whole], 0)["switch"] / len(x))


def ranks(rule: SwitchSpec, parts: Sequence[Tensor], weighed: bool = True) -> tuple[float, Tensor]:
    """What data-parallel ranks, a part each, find after averaging their gradients. Every rank divides its sum by the
    tokens of all ranks and multiplies by their number, or else (wrong) takes the mean of its own tokens."""
    layers = [build(rule) for _ in parts]
    records = [record(layer, x) for layer, x in zip(layers, parts, strict=True)]
    sent: list[Tensor] = []
    for layer, each in zip(layers, records, strict=True):
        BalanceStep([layer], lambda flat: sent.append(flat.clone()) or flat).add([each])  # type: ignore[func-returns-value]
    tokens, world = sum(map(len, parts)), len(parts)
    found = []
    for layer, each, x in zip(layers, records, parts, strict=True):
        step = BalanceStep([layer], lambda flat: torch.stack(sent).sum(0))
        step.add([each])
        share = world / tokens if weighed else 1 / len(x)
        found.append(loss_and_gradient(layer, step.losses([each], 0)["switch"] * share))
    return sum(f[0] for f in found) / world, torch.stack([f[1] for f in found]).mean(0)


@pytest.mark.parametrize("sizes", [(16, 16), (8, 8, 8, 8), (5, 30, 13)])
def test_ranks_together_are_one_process(sizes: tuple[int, ...]) -> None:
    rule, parts = SwitchSpec(scope="global", weight=1.0), domains(sizes)
    (loss, gradient), (expected, wanted) = ranks(rule, parts), alone(rule, parts)
    assert loss == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-10)


def test_without_counting_together_they_are_not() -> None:
    rule, parts = SwitchSpec(scope="micro", weight=1.0), domains((16, 16))
    assert ranks(rule, parts)[0] > 1.2 * alone(rule, parts)[0]


def test_a_plain_mean_over_ranks_of_unequal_size_is_wrong() -> None:
    rule, parts = SwitchSpec(scope="global", weight=1.0), domains((5, 30, 13))
    assert abs(ranks(rule, parts, weighed=False)[0] - alone(rule, parts)[0]) > 1e-3


@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_number_of_ranks_does_not_shrink_the_loss(world: int) -> None:
    """NVIDIA/Megatron-LM#3672: the first global loss was too small by the number of data-parallel ranks, having been
    divided by it once more before gradients were averaged."""
    rule, part = SwitchSpec(scope="global", weight=1.0), domains((16,))[0]
    loss, gradient = ranks(rule, [part] * world)  # equal shards: every number of ranks must find the same
    expected, wanted = alone(rule, [part])
    assert loss == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-10)


def test_a_recomputed_forward_pass_counts_nothing_twice() -> None:
    """pytorch/torchtitan#4772 forbids activation checkpointing here: its counter would advance in the second pass."""
    from zoo.backbone.trunk import BackboneSpec
    from zoo.spec import parse

    ffn = {
        "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 4}, "router": {"type": "top_k"},
        "balance": [{"type": "switch", "scope": "global", "weight": 1.0}],
    }  # fmt: skip
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        plain = {"dim": 8, "checkpoint": checkpoint, "layers": [{"repeat": 2, "block": block}]}
        trunk = parse(BackboneSpec, plain).build().train()
        step = BalanceStep(trunk.moe_layers())
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            out = trunk(Tokens(embedding=torch.randn(2, 6, 8, generator=generator)))
            step.add(out.records)
            (out.tokens.embedding.square().sum() + step.losses(out.records, 0)["switch"]).backward()
        gradients = [p.grad for p in trunk.parameters() if p.grad is not None]
        found.append(([c.pack() for c in step.counts], gradients))
    assert all(float(c[-1]) == 24 for c in found[1][0])
    torch.testing.assert_close(found[1], found[0])


def test_the_last_micro_batch_sees_the_whole_step_and_not_itself_alone() -> None:
    """modelscope/ms-swift#6787: its count of accumulation steps stood at 1, so that "global" was micro in silence."""
    rule, parts = SwitchSpec(scope="global", weight=1.0), domains((8, 8, 8))
    layer = build(rule)
    step = BalanceStep([layer])
    for number, x in enumerate(parts, 1):
        each = record(layer, x)
        step.add([each])
        so_far = BalanceStep([layer])
        so_far.add([record(layer, torch.cat(parts[:number]))])
        torch.testing.assert_close(step.counts[0].pack(), so_far.counts[0].pack(), atol=0, rtol=0)
    last = float(step.losses([each], 0)["switch"].detach())
    by_itself = BalanceStep([layer])
    by_itself.add([each])
    assert last < 0.8 * float(by_itself.losses([each], 0)["switch"].detach())


def test_counting_starts_anew_after_the_optimiser_step_and_stays_out_of_evaluation() -> None:
    layer = build(SwitchSpec(scope="global"), BiasSpec(weight=0.1))
    step = BalanceStep([layer])
    step.add([record(layer, domains((8,))[0])])
    held = [c.pack().clone() for c in step.counts]
    assert layer.router.bias is not None
    before = layer.router.bias.clone()
    record(layer.eval(), domains((9,))[0])  # a forward pass by itself counts nowhere and moves nothing
    assert torch.equal(step.counts[0].pack(), held[0]) and torch.equal(layer.router.bias, before)
    step.finish(0)
    assert not bool(step.counts[0].pack().any()) and not torch.equal(layer.router.bias, before)


def test_one_rank_and_one_micro_batch_is_the_micro_loss() -> None:
    parts = domains((24,))
    micro, whole = (alone(SwitchSpec(scope=scope, weight=1.0), parts) for scope in ("micro", "global"))
    assert micro[0] == pytest.approx(whole[0], abs=1e-14)
    torch.testing.assert_close(micro[1], whole[1], atol=1e-14, rtol=0)


def test_what_travels_is_one_small_vector() -> None:
    """8 bytes for each count: slots and first choices of every expert, and the tokens."""
    layer, sent = build(SwitchSpec(scope="global")), []
    step = BalanceStep([layer, layer], lambda flat: sent.append(flat) or flat)  # type: ignore[func-returns-value]
    each = record(layer, domains((8,))[0])
    step.add([each, each])
    assert len(sent) == 1 and sent[0].numel() * sent[0].element_size() == 8 * 2 * (2 * 8 + 1)
