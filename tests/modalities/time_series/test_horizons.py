from __future__ import annotations

import pytest
import torch

from modalities.time_series.horizons import HorizonHeads, schedule

TIME_MOE = (1, 8, 32, 64)


@pytest.mark.parametrize(
    ("horizon", "takes"),
    [
        (1, [1]),
        (96, [64, 32]),
        (100, [64, 32, 1, 1, 1, 1]),
        (192, [64] * 3),
        (336, [64] * 5 + [8] * 2),
        (720, [64] * 11 + [8] * 2),
    ],
)
def test_the_schedule_of_the_paper(horizon: int, takes: list[int]) -> None:
    assert [take for _, take in schedule(TIME_MOE, horizon)] == takes


def test_the_smallest_head_is_cut_where_none_fits() -> None:
    assert schedule((24, 96), 130) == [(1, 96), (0, 24), (0, 10)]
    assert schedule((24, 96), 5) == [(0, 5)]


@pytest.mark.parametrize("horizon", [0, -3, 1.5, True])
def test_a_horizon_below_one_is_refused(horizon: object) -> None:
    with pytest.raises(ValueError, match=r"horizon: got .*, expected a whole number of at least 1"):
        schedule(TIME_MOE, horizon)  # type: ignore[arg-type]


def zero_heads(*horizons: int) -> HorizonHeads:
    heads = HorizonHeads(4, horizons)
    for parameter in heads.parameters():
        torch.nn.init.zeros_(parameter)
    return heads


def test_huber_has_delta_two() -> None:
    target, real = torch.tensor([[1.0], [2.0], [3.0], [-3.0]]), torch.ones(4, 1, dtype=torch.bool)
    loss, squares = zero_heads(1).errors(torch.ones(4, 4), target, real, "huber")
    assert loss.tolist() == [0.5, 2, 4, 4]
    assert squares[0].tolist() == [1, 4, 9, 9]
    assert zero_heads(1).errors(torch.ones(4, 4), target, real, "mse")[0].tolist() == [1, 4, 9, 9]


def test_the_loss_is_the_mean_over_heads_of_the_mean_over_real_targets() -> None:
    target = torch.tensor([[1.0, 2.0, 50.0, 50.0]])
    real = torch.tensor([[True, True, False, False]])
    loss, _ = zero_heads(1, 4).errors(torch.ones(1, 4), target, real, "mse")
    assert loss.item() == pytest.approx((1 + (1 + 4) / 2) / 2)
