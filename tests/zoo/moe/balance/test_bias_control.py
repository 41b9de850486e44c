"""Bias control in simulation: DeepSeek-V3's sign rule, Ling's update of mean zero, LongCat's budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.moe.balance.bias import BiasSpec
from zoo.moe.pool import NullSpec, Pool
from zoo.moe.stats import count_slots


def simulate(rule: BiasSpec, pool: Pool, k: int, steps: int, tokens: int, mean: Tensor, score: str) -> Tensor:
    """[steps, E] loads under logits mean + N(0, 1), the bias following; mean [E], or [steps, E] where it shifts."""
    torch.manual_seed(0)
    bias, loads = torch.zeros(pool.experts), []
    means = mean.expand(steps, -1) if mean.dim() == 1 else mean
    for step in range(steps):
        raw = means[step] + torch.randn(tokens, pool.experts)
        scores = raw.sigmoid() if score == "sigmoid" else raw.softmax(-1)
        load = count_slots((scores + bias).topk(k, dim=-1).indices, pool.experts)
        bias += rule.delta(load, pool, step)
        loads.append(load)
    return torch.stack(loads).double()


def worst(loads: Tensor) -> float:
    """Greatest over mean load, of the loads summed."""
    total = loads.sum(0)
    return float(total.max() / total.mean())


def test_the_sign_rule_evens_a_skewed_router() -> None:
    pool, mean = Pool(routed=32), torch.linspace(-1, 1, 32)
    loads = simulate(BiasSpec(weight=2e-3), pool, 4, 700, 256, mean, "sigmoid")
    assert worst(loads[:5]) > 2.5 and worst(loads[-100:]) < 1.1
    still = simulate(BiasSpec(weight=0.0), pool, 4, 100, 256, mean, "sigmoid")
    assert worst(still[-50:]) > 2.5


def test_an_update_of_mean_zero_keeps_the_sum_and_the_choice() -> None:
    """Adding one constant to all biases changes no choice, so centring changes the biases and not the load."""
    pool, mean = Pool(routed=8), torch.linspace(-1, 1, 8)
    plain, centred = BiasSpec(weight=0.01), BiasSpec(weight=0.01, centered=True)
    counts = torch.tensor([9, 1, 1, 1, 1, 1, 1, 1])
    torch.testing.assert_close(
        centred.delta(counts, pool), plain.delta(counts, pool) - plain.delta(counts, pool).mean()
    )
    assert float(centred.delta(counts, pool).sum()) == pytest.approx(0, abs=1e-8)
    loads = [simulate(rule, pool, 2, 60, 64, mean, "sigmoid") for rule in (plain, centred)]
    assert float((loads[0] - loads[1]).abs().mean()) < 0.5  # rounding alone may turn a near tie


def test_a_centred_update_of_routed_experts_leaves_null_experts_alone() -> None:
    pool = Pool(routed=3, null=NullSpec(zero=2))
    change = BiasSpec(weight=1.0, centered=True, target="routed").delta(torch.tensor([9, 1, 1, 2, 2]), pool)
    assert float(change[:3].sum()) == pytest.approx(0, abs=1e-6) and change[3:].tolist() == [0.0, 0.0]


BUDGET = Pool(routed=16, null=NullSpec(copy=8))  # K = 6, of which 4 routed in the mean


def budget(weight: float, **more: float) -> BiasSpec:
    return BiasSpec(weight=weight, step="proportional", target="routed", routed_share=4 / 6, **more)  # type: ignore[arg-type]


def test_longcats_increments_vanish_at_the_budget() -> None:
    """At T_i = K_e T / N all are 0; elsewhere their sum is mu (K_e - mean routed count) / K; identity biases stay."""
    at = torch.tensor([25] * 16 + [25] * 8)  # T = 100: 400 routed slots, 200 of identity experts
    assert float(budget(1.0).delta(at, BUDGET).abs().max()) < 1e-7
    off = torch.tensor([20] * 16 + [35] * 8)  # a mean of 3.2 routed
    change = budget(0.5).delta(off, BUDGET)
    assert float(change.sum()) == pytest.approx(0.5 * (4 - 3.2) / 6, abs=1e-7)
    assert not bool(change[16:].any())
    torch.testing.assert_close(change[0], torch.tensor(0.5 * (4 / (6 * 16) - 20 / (6 * 100))))


def test_longcats_published_equilibrium() -> None:
    """512 + 256 experts, 12 of which 8 routed: every expert, identity or not, gets .015625 of the tokens."""
    pool = Pool(routed=512, null=NullSpec(copy=256))
    torch.testing.assert_close(12 * BiasSpec(routed_share=8 / 12).targets(pool), torch.full((768,), 0.015625))


def test_the_budget_is_kept_and_found_again_after_a_shift() -> None:
    before = torch.cat([torch.linspace(-1, 1, 16), torch.full((8,), 0.5)])
    after = torch.cat([torch.linspace(1, -1, 16), torch.full((8,), -0.5)])
    mean = torch.cat([before.expand(300, -1), after.expand(300, -1)])
    loads = simulate(budget(0.2), BUDGET, 6, 600, 128, mean, "softmax")
    count = loads[:, :16].sum(-1) / 128
    assert abs(float(count[:5].mean()) - 4) > 0.3 and abs(float(count[300:305].mean()) - 4) > 0.3
    for end in (300, 600):
        assert float(count[end - 100 : end].mean()) == pytest.approx(4, rel=0.01)
