"""Balance by hand: global-batch and MoE++ figures, scopes, annealing, bias updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.attention import GroupedQuerySpec
from zoo.backbone.blocks.sequential import SequentialSpec
from zoo.backbone.trunk import BackboneSpec, LayersSpec
from zoo.moe.balance.base import BalanceContext, BalanceSpec, Counts
from zoo.moe.balance.bias import BiasSpec
from zoo.moe.balance.step import BalanceStep, needs_exact_counts
from zoo.moe.balance.switch import SwitchSpec
from zoo.moe.balance.z_loss import ZLossSpec
from zoo.moe.experts.ffn import SwiGLUSpec
from zoo.moe.layer import MoE
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.record import LayerRecord
from zoo.moe.routers.top_k import TopKSpec
from zoo.moe.routing import Routing, RoutingContext
from zoo.moe.spec import MoESpec


def chosen(probs: list[list[float]], expert: list[list[int]], mask: list[bool] | None = None) -> Routing:
    """A routing with these probabilities and choices."""
    raw = torch.tensor(probs, dtype=torch.float64).log()
    index = torch.tensor(expert)
    gate = torch.ones(index.shape, dtype=torch.float64) / index.shape[1]
    real = torch.ones(len(raw), dtype=torch.bool) if mask is None else torch.tensor(mask)
    return Routing(expert=index, gate=gate, raw=raw, scores=raw, mask=real)


def value(rule: BalanceSpec, routing: Routing, pool: Pool, counts: Counts | None = None, rows: int = 1) -> float:
    """The rule's loss divided by the real tokens."""
    shape = (rows, len(routing.mask) // rows)
    total = rule.loss(routing, BalanceContext.of(routing, shape, None, counts, pool))
    assert total is not None
    return float(total) / int(routing.mask.sum())


TWO = Pool(routed=2)
RANK_A = chosen([[0.9, 0.1]] * 4, [[0]] * 4)
RANK_B = chosen([[0.1, 0.9]] * 4, [[1]] * 4)


def both() -> Counts:
    a, b = Counts.of(RANK_A), Counts.of(RANK_B)
    return Counts.unpack(a.pack() + b.pack())


def test_the_hand_case_of_two_ranks() -> None:
    """global-batch-lbl: 1.8 where each rank looks at itself, 1.0 where counts are summed."""
    for routing in (RANK_A, RANK_B):
        assert value(SwitchSpec(scope="micro"), routing, TWO) == pytest.approx(1.8, abs=1e-12)
        for scope in ("global", "global_exact"):
            rule = SwitchSpec(scope=scope)
            assert value(rule, routing, TWO, both()) == pytest.approx(1.0, abs=1e-12)


def test_sequence_scope_looks_at_each_row() -> None:
    joint = chosen([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 4, [[0]] * 4 + [[1]] * 4)
    assert value(SwitchSpec(scope="sequence"), joint, TWO, rows=2) == pytest.approx(1.8)
    assert value(SwitchSpec(scope="micro"), joint, TWO, rows=2) == pytest.approx(1.0)


def test_documents_of_a_row_are_sequences() -> None:
    joint = chosen([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 4, [[0]] * 4 + [[1]] * 4)
    document = torch.tensor([0, 0, 0, 0, 5, 5, 5, 5])
    ctx = BalanceContext.of(joint, (1, 8), document, None, TWO)
    assert ctx.segments == 2
    assert float(SwitchSpec(scope="sequence").loss(joint, ctx)) / 8 == pytest.approx(1.8)


def test_the_heterogeneous_loss_of_moe_plus_plus() -> None:
    """f = [.5] * 4 per token, P = [.25] * 4, two feed-forward and two cheap experts, tau .75: 0.4375; without the
    factor E, so factor 1 / 4 here; and 0.428571 at the target load [3, 3, 4, 4] / 14."""
    pool = Pool(routed=2, null=NullSpec(zero=1, copy=1))
    rule = SwitchSpec(count="tokens", null_weight=0.75, factor=1 / 4)
    even = chosen([[0.25] * 4] * 2, [[0, 1], [2, 3]])
    assert value(rule, even, pool) == pytest.approx(0.4375, abs=1e-12)
    target = [3 / 14, 3 / 14, 4 / 14, 4 / 14]
    pairs = [[0, 2]] * 3 + [[1, 3]] * 3 + [[2, 3]]
    assert value(rule, chosen([target] * 7, pairs), pool) == pytest.approx(1.5 / 3.5, abs=1e-12)
    off = [[0, 2]] * 3 + [[0, 3]] * 3 + [[1, 3]]
    counts = [6 / 14, 1 / 14, 3 / 14, 4 / 14]
    assert value(rule, chosen([counts] * 7, off), pool) > 1.5 / 3.5


@pytest.mark.parametrize(("count", "expected"), [("slots", 1.0), ("tokens", 2.0), ("first", 1.0)])
def test_what_f_counts_at_even_load(count: Any, expected: float) -> None:
    even = chosen([[0.25] * 4] * 4, [[0, 1], [1, 2], [2, 3], [3, 0]])
    assert value(SwitchSpec(count=count), even, Pool(routed=4)) == pytest.approx(expected)


def test_first_choices_alone_count_also_over_the_whole_step() -> None:
    routing = chosen([[0.7, 0.3, 0.0001]] * 4, [[0, 1]] * 4)
    for scope in ("micro", "global", "global_exact"):
        rule = SwitchSpec(count="first", scope=scope)
        assert value(rule, routing, Pool(routed=3), Counts.of(routing)) == pytest.approx(3 * 0.7, rel=1e-3)


def test_p_over_the_chosen_and_over_the_gates() -> None:
    routing = chosen([[0.5, 0.3, 0.2]], [[0, 1]])
    pool = Pool(routed=3)
    assert value(SwitchSpec(probability="selected"), routing, pool) == pytest.approx(3 * 0.5)
    assert value(SwitchSpec(probability="full"), routing, pool) == pytest.approx(3 * 0.5 * 0.8)
    assert value(SwitchSpec(probability="gate"), routing, pool) == pytest.approx(3 * 0.5)


def test_sigmoid_scores_are_divided_by_their_sum() -> None:
    raw = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    routing = Routing(
        expert=torch.tensor([[0]]), gate=torch.ones(1, 1), raw=raw, scores=raw, mask=torch.ones(1, dtype=torch.bool)
    )
    scores = raw.sigmoid()[0]
    expected = 3 * float(scores[0] / scores.sum())
    assert value(SwitchSpec(score="sigmoid"), routing, Pool(routed=3)) == pytest.approx(expected)


def test_device_groups() -> None:
    routing = chosen([[0.4, 0.3, 0.2, 0.1]], [[0, 3]])
    pool = Pool(routed=4)
    assert value(SwitchSpec(groups=2), routing, pool) == pytest.approx(2 * (0.5 * 0.7 + 0.5 * 0.3))


def test_masked_tokens_count_for_nothing() -> None:
    plain = chosen([[0.9, 0.1], [0.4, 0.6]], [[0], [1]])
    padded = chosen([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], [[0], [1], [2]], [True, True, False])
    for rule in (SwitchSpec(), SwitchSpec(count="tokens"), ZLossSpec()):
        assert value(rule, padded, TWO) == pytest.approx(value(rule, plain, TWO))


def test_weights_by_hand() -> None:
    """Weights 3 and 1: f = [.75, .25], the sum of w P = [3, 1], so 2 * (.75 * 3 + .25 * 1) = 5; z-loss 3 a + b."""
    routing = chosen([[1.0, 1e-30], [1e-30, 1.0]], [[0], [1]])
    weight = torch.tensor([3.0, 1.0])
    counts = Counts.of(routing, weight)
    assert [counts.slots.tolist(), counts.first.tolist(), float(counts.tokens)] == [[3.0, 1.0], [3.0, 1.0], 4.0]
    for rule in (SwitchSpec(), SwitchSpec(count="tokens"), SwitchSpec(scope="global")):
        ctx = BalanceContext.of(routing, (1, 2), None, counts, TWO, weight)
        assert float(rule.loss(routing, ctx)) == pytest.approx(5.0)
    raw = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    ctx = BalanceContext.of(routing, (1, 2), None, None, TWO, weight)
    first, second = (raw.exp().sum(-1).log() ** 2).tolist()
    assert float(ZLossSpec().loss(routing.replace(raw=raw), ctx)) == pytest.approx(3 * first + second)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_weights_of_tokens_reach_the_records(checkpoint: bool) -> None:
    """UniMoE-Audio lets label tokens weigh 10."""
    moe = MoESpec(routed=4, experts=SwiGLUSpec(hidden=4), router=TopKSpec())
    block = SequentialSpec(attention=GroupedQuerySpec(heads=2), ffn=moe)
    trunk = BackboneSpec(dim=8, layers=(LayersSpec(block=block),), checkpoint=checkpoint).build().train()
    weight = torch.tensor([[1.0, 1.0, 10.0], [1.0, 10.0, 10.0]])
    embedding = torch.randn(2, 3, 8)
    (weighed,) = trunk(Tokens(embedding=embedding, weight=weight)).records
    (plain,) = trunk(Tokens(embedding=embedding)).records
    assert plain.weight is None and weighed.weight is not None
    assert weighed.weight.tolist() == weight.flatten().tolist()
    step = BalanceStep(trunk.moe_layers())
    step.add([weighed])
    assert float(step.counts[0].tokens) == 33.0 and float(step.counts[0].slots.sum()) == 66.0


def test_sequences_are_numbered_only_for_rules_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(Tensor, "unique", never)
    routing, document = chosen([[0.9, 0.1]] * 4, [[0]] * 4), torch.tensor([0, 0, 1, 1])
    ctx = BalanceContext.of(routing, (1, 4), document, None, TWO)
    assert float(SwitchSpec().loss(routing, ctx)) == pytest.approx(4 * 1.8)
    with pytest.raises(AssertionError, match="asked"):
        SwitchSpec(scope="sequence").loss(routing, ctx)


def test_z_loss() -> None:
    raw = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    one = torch.ones(2, 1)
    routing = Routing(expert=torch.zeros(2, 1).long(), gate=one, raw=raw, scores=raw, mask=torch.tensor([True, True]))
    expected = (raw.exp().sum(-1).log() ** 2).mean()
    assert value(ZLossSpec(), routing, TWO) == pytest.approx(float(expected))


def test_the_weight_is_annealed_linearly() -> None:
    rule = SwitchSpec(weight=0.025, final=0.001, anneal=10_000)
    assert [rule.weight_at(s) for s in (0, 10_000, 20_000)] == pytest.approx([0.025, 0.001, 0.001], rel=1e-12)
    assert rule.weight_at(5000) == pytest.approx(0.013)
    assert SwitchSpec(weight=0.3).weight_at(7) == 0.3


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (BiasSpec(weight=0.1), [-0.1, 0.1, 0.1, 0.0]),
        (BiasSpec(weight=1.0, step="proportional"), [-0.25, 0.125, 0.125, 0.0]),
        (BiasSpec(weight=0.1, target="routed"), [-0.1, 0.1, 0.1, 0.0]),
    ],
)
def test_bias_updates(rule: BiasSpec, expected: list[float]) -> None:
    pool = Pool(routed=3, null=NullSpec(zero=1))
    torch.testing.assert_close(rule.delta(torch.tensor([8, 2, 2, 4]), pool), torch.tensor(expected))
    assert not bool(rule.delta(torch.zeros(4).long(), pool).any())


def test_the_rate_of_the_bias_may_grow_from_zero() -> None:
    rule, counts = BiasSpec(weight=0.0, final=0.2, anneal=4), torch.tensor([3, 1])
    moved = [rule.delta(counts, Pool(routed=2), step).tolist() for step in (0, 2, 4)]
    torch.testing.assert_close(torch.tensor(moved), torch.tensor([[0.0, 0.0], [-0.1, 0.1], [-0.2, 0.2]]))


def test_a_compute_budget_sets_the_share_of_the_routed_experts() -> None:
    pool = Pool(routed=2, null=NullSpec(zero=1, copy=1))
    torch.testing.assert_close(BiasSpec(routed_share=0.8).targets(pool), torch.tensor([0.4, 0.4, 0.1, 0.1]))
    torch.testing.assert_close(BiasSpec().targets(pool), torch.full((4,), 0.25))
    moved = BiasSpec(weight=1.0, routed_share=0.8, target="routed").delta(torch.tensor([1, 1, 1, 1]), pool)
    assert moved.tolist() == [1.0, 1.0, 0.0, 0.0]


def layer(*balance: BalanceSpec) -> MoE:
    torch.manual_seed(0)
    return MoE(MoESpec(routed=4, experts=SwiGLUSpec(hidden=4), router=TopKSpec(bias=True), balance=balance), 8).double()


def record(moe: MoE, x: Tensor) -> LayerRecord:
    ctx = RoutingContext(shape=(1, len(x)), mask=torch.ones(len(x), dtype=torch.bool))
    out = moe(x, ctx)
    return LayerRecord(out.routing, out.stats, (1, len(x)))


def test_a_step_adds_rules_by_name_and_divides_by_the_layers() -> None:
    moe = layer(SwitchSpec(weight=0.5), ZLossSpec(weight=0.25), SwitchSpec(weight=0.5, scope="sequence"))
    one = record(moe, torch.randn(6, 8, dtype=torch.float64))
    single, double = BalanceStep([moe]), BalanceStep([moe, moe])
    single.add([one])
    double.add([one, one])
    first, second = single.losses([one], 0), double.losses([one, one], 0)
    assert set(first) == {"switch", "zloss"}
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_the_bias_moves_once_per_optimiser_step_by_all_counts() -> None:
    moe = layer(BiasSpec(weight=0.1))
    pieces = [record(moe, torch.randn(5, 8, dtype=torch.float64)) for _ in range(3)]
    step = BalanceStep([moe])
    for piece in pieces:
        step.add([piece])
    counts = sum(piece.stats.load for piece in pieces)
    assert torch.equal(step.counts[0].slots, counts)
    assert int(step.counts[0].tokens) == 15
    step.finish(0)
    assert moe.router.bias is not None
    expected = 0.1 * (0.25 - counts / counts.sum()).sign()
    torch.testing.assert_close(moe.router.bias.float(), expected.float())
    assert not bool(step.counts[0].pack().any())


def test_the_counts_of_all_ranks_are_summed_once_per_micro_batch() -> None:
    moe = layer(SwitchSpec(scope="global"))
    calls: list[Tensor] = []

    def reduce(flat: Tensor) -> Tensor:
        calls.append(flat)
        return 2 * flat

    step = BalanceStep([moe, moe], reduce)
    piece = record(moe, torch.randn(5, 8, dtype=torch.float64))
    step.add([piece, piece])
    assert len(calls) == 1 and len(calls[0]) == 18
    assert torch.equal(step.counts[1].slots, 2 * piece.stats.load)


def test_only_exact_rules_need_counting_ahead() -> None:
    assert needs_exact_counts([layer(SwitchSpec(scope="global_exact"))])
    assert not needs_exact_counts([layer(SwitchSpec(scope="global"), ZLossSpec())])
