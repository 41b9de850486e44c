from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modalities.roots import find
from modalities.time_series.data import ETTH1, ETTh1Spec
from modalities.time_series.evaluate import compare, evaluate, naive, origins
from modalities.time_series.module import TimeSeries
from modalities.time_series.spec import TimeSeriesSpec

Make = Callable[..., Any]


def make(**options: Any) -> TimeSeries:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimeSeriesSpec(**({"patch": 12, "context": 48} | options)).build(32)


def waves(noise: float, length: int = 600) -> list[dict[str, Any]]:
    generator, t = np.random.default_rng(0), np.arange(length)
    raws = []
    for shift in range(3):
        series = np.sin(2 * np.pi * (t / 24 + shift / 3)) + noise * generator.standard_normal(length)
        raws.append({"series": series.astype(np.float32), "start": 400, "period": 24, "unit": "m", "step": "hours"})
    return raws


def test_origins_keep_the_whole_horizon_held_out() -> None:
    raw = {"series": np.zeros(50), "start": 40}
    assert origins(raw, 12, 8, None).tolist() == [40, 41, 42]
    assert origins(raw, 12, 8, 2).tolist() == [40, 42]
    assert origins(raw, 12, 11, None).tolist() == []
    assert origins({"series": np.zeros(20)}, 12, 8, None).tolist() == [12]


def test_the_naive_forecasts() -> None:
    last, season = naive(np.arange(10.0), 8, 5, 3)
    assert last.tolist() == [7] * 5 and season.tolist() == [5, 6, 7, 5, 6]
    assert naive(np.arange(10.0), 2, 3, 4)[1].tolist() == [1, 1, 1]


@pytest.mark.skipif(find(ETTH1) is None, reason="ETTh1 is not below ZOO_DATA")
def test_the_baselines_of_etth1_are_those_known() -> None:
    squares = {24: np.zeros(2), 96: np.zeros(2)}
    for raw in ETTh1Spec().build("test"):
        for horizon, total in squares.items():
            at = origins(raw, 24, horizon, 400)
            for o in at:
                truth = raw["series"][o : o + horizon]
                total += [np.square(f - truth).mean() / len(at) / 7 for f in naive(raw["series"], o, horizon, 24)]
    assert squares[24].min() == pytest.approx(0.43, abs=0.01)
    assert squares[96].min() == pytest.approx(0.51, abs=0.01)


@pytest.mark.parametrize("embedding", ["patch", "point"])
def test_evaluation_scores_both_horizons_and_draws(stand_in: Make, tmp_path: Path, embedding: str) -> None:
    module, trunk = make(embedding=embedding), stand_in()
    step = trunk.step if module.incremental else lambda: trunk
    scores = evaluate(module, step, [], waves(0.1), generator=torch.Generator(), out=tmp_path, limit=30)
    assert [s.name for s in scores] == ["MSE at 24", "MSE at 96"]
    assert all(s.baseline == pytest.approx(0.02, rel=0.3) and s.value > 0.3 and not s.won for s in scores)
    assert "30 windows of 3 series" in scores[0].note
    assert [p.name for p in tmp_path.iterdir()] == ["forecast.png"]
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")


def test_short_contexts_are_grouped_by_length(stand_in: Make) -> None:
    module, trunk = make(), stand_in()
    *_, count = compare(module, lambda: trunk, [{"series": np.arange(90.0)}], 24, None)
    assert count == 90 - 24 - 12 + 1


def test_too_short_a_test_part_is_an_error(stand_in: Make) -> None:
    trunk = stand_in()
    with pytest.raises(ValueError, match="test: no series has 96 held-out values after 12"):
        compare(make(), lambda: trunk, [{"series": np.arange(100.0), "start": 60}], 96, None)


def test_a_few_steps_of_training_beat_the_baselines(stand_in: Make) -> None:
    """On noisy waves the best forecast has half the error of the seasonal one."""
    module, trunk, generator = make(), stand_in(), torch.Generator().manual_seed(0)
    raws = waves(0.5)
    examples = [module.example({"series": r["series"][:400]}) for r in raws]
    optimiser = torch.optim.AdamW([*module.parameters(), *trunk.parameters()], lr=5e-3)
    for _ in range(120):
        batch = module.collate(examples * 8, generator)
        loss = module.loss(trunk(module.encode(batch)), batch)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
    scores = evaluate(module, lambda: trunk, raws, raws, generator=generator, limit=60)
    assert all(s.won and s.value < 0.8 * s.baseline for s in scores)
