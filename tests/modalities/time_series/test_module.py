from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from modalities.base import Tokens
from modalities.time_series.module import TimeSeries
from modalities.time_series.spec import TimeSeriesSpec

Make = Callable[..., Any]
POINT = {"embedding": "point", "context": 24, "heads": (1, 4, 8)}
PATCH = {"embedding": "patch", "patch": 4, "context": 24, "heads": (4, 8)}
BOTH = pytest.mark.parametrize("options", [POINT, PATCH], ids=["point", "patch"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(options: dict[str, Any], **changes: Any) -> TimeSeries:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TimeSeriesSpec(**(options | changes)).build(32)
        for linear in module.heads.maps:
            torch.nn.init.normal_(linear.weight, std=0.2)  # large enough that forecasts move
        return module


def stepper(module: TimeSeries, trunk: Any) -> Callable[[], Callable[[Tokens], Tokens]]:
    return trunk.step if module.incremental else lambda: trunk


def wave(length: int, shift: float = 0.0) -> np.ndarray:
    t = np.arange(length)
    return (np.sin(t / 3 + shift) + 0.1 * np.cos(t * 1.7) + 5).astype(np.float32)


@BOTH
def test_the_spec_counts_its_parameters(options: dict[str, Any]) -> None:
    spec = TimeSeriesSpec(**options)
    assert spec.parameters(32) == sum(p.numel() for p in spec.build(32).parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 0}, "patch: got 0"),
        ({"context": 100, "patch": 24}, r"context: got 100, expected a multiple of patch \(24\)"),
        ({"context": 12, "patch": 24}, "context: got 12, expected at least 24"),
        ({"heads": ()}, r"heads: got \[\], expected ascending"),
        ({"heads": (8, 1)}, r"heads: got \[8, 1\], expected ascending"),
        ({"heads": (0, 1)}, r"heads: got \[0, 1\], expected ascending"),
    ],
)
def test_impossible_specs_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        TimeSeriesSpec(**options)


@BOTH
def test_windows_are_random_and_scaled_by_their_context(options: dict[str, Any]) -> None:
    module = make(options)
    example = module.example({"series": wave(200)})
    batch = module.collate([example] * 40, seeded())
    assert batch["past"].shape == (40, 24) and batch["future"].shape == (40, 8)
    assert batch["past_mask"].all() and batch["future_mask"].all()
    assert torch.allclose(batch["past"].mean(1), torch.zeros(40), atol=1e-5)
    assert torch.allclose(batch["past"].std(1, correction=0), torch.ones(40), atol=1e-5)
    assert len(batch["past"][:, 0].unique()) > 20
    again = module.collate([example] * 40, seeded())
    assert all(torch.equal(batch[k], again[k]) for k in batch)


@BOTH
def test_without_normalisation_values_stay(options: dict[str, Any]) -> None:
    module, series = make(options, normalise=False), wave(32)
    batch = module.collate([module.example({"series": series})], seeded())
    assert torch.equal(torch.cat([batch["past"], batch["future"]], 1)[0], torch.from_numpy(series))


@BOTH
def test_a_short_series_is_padded_and_its_padding_masked(options: dict[str, Any]) -> None:
    module = make(options)
    batch = module.collate([module.example({"series": wave(module.spec.minimum + 1)})], seeded())
    assert batch["past_mask"].sum() == module.spec.minimum and batch["future_mask"].sum() == 1
    assert batch["past_mask"][0, -1] and batch["future_mask"][0, 0]
    tokens = module.encode(batch)
    assert tokens.mask is not None and tokens.mask.sum() == module.spec.minimum // module.unit


@BOTH
def test_padding_changes_neither_loss_nor_gradient(stand_in: Make, options: dict[str, Any]) -> None:
    module, trunk = make(options), stand_in()
    examples = [module.example({"series": wave(n)}) for n in (40, 17)]
    batch = module.collate(examples, seeded())
    loss = module.loss(trunk(module.encode(batch)), batch)
    (whole,) = torch.autograd.grad(loss.total, module.embedding.value.weight)
    short = {k: v[1:] for k, v in batch.items()}
    keep = int(short["past_mask"].sum())
    short |= {"past": short["past"][:, -keep:], "past_mask": short["past_mask"][:, -keep:]}
    total, count, gradient = 0.0, 0, torch.zeros_like(whole)
    for part in ({k: v[:1] for k, v in batch.items()}, short):
        alone = module.loss(trunk(module.encode(part)), part)
        total, count = total + alone.total.item(), count + int(alone.count)
        gradient += torch.autograd.grad(alone.total, module.embedding.value.weight)[0]
    assert loss.count.item() == count
    assert loss.total.item() == pytest.approx(total, rel=1e-4)
    assert torch.allclose(whole, gradient, atol=1e-5)


def test_points_forecast_at_every_position_the_values_after_it() -> None:
    module = make(POINT, normalise=False)
    series = torch.arange(32.0)
    batch = module.collate([module.example({"series": series})], seeded())
    _, target, real = module.targets(module.encode(batch), batch)
    assert real.all() and target.shape == (24, 8)
    assert torch.equal(target, torch.arange(24.0)[:, None] + torch.arange(1, 9))


def test_the_first_value_of_every_head_has_the_same_target() -> None:
    module = make(POINT, normalise=False)
    batch = module.collate([module.example({"series": wave(32)})], seeded())
    for linear in module.heads.maps:
        torch.nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
    hidden = module.encode(batch)
    (total,) = torch.autograd.grad(module.loss(hidden, batch).total, hidden.embedding, allow_unused=True)
    assert not total.any()
    _, target, _ = module.targets(hidden, batch)
    assert torch.equal(target[:-1, 1], target[1:, 0])


def test_points_are_causal_and_patches_see_each_other(stand_in: Make) -> None:
    trunk = stand_in()
    for options, causal in ((POINT, True), (PATCH, False)):
        module = make(options, normalise=False)
        batch = module.collate([module.example({"series": wave(32)})], seeded())
        before = module.decode(trunk(module.encode(batch)))
        batch["past"][0, -1] += 3
        after = module.decode(trunk(module.encode(batch)))
        assert torch.allclose(before[:, :-1], after[:, :-1], atol=1e-6) is causal
        assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-3)


@BOTH
@pytest.mark.parametrize("horizon", [1, 3, 8, 21])
def test_any_horizon_in_one_shape_or_a_batch(stand_in: Make, options: dict[str, Any], horizon: int) -> None:
    module = make(options)
    step = stepper(module, stand_in())
    one = module.sample(step(), wave(50), horizon)
    two = module.sample(step(), np.stack([wave(50), wave(50, 1.0)]), horizon)
    assert one.shape == (horizon,) and two.shape == (2, horizon)
    assert one.isfinite().all() and torch.allclose(one, two[0], atol=1e-5)


@BOTH
def test_a_longer_forecast_begins_with_the_shorter_one_of_the_same_head(
    stand_in: Make, options: dict[str, Any]
) -> None:
    module = make(options)
    step = stepper(module, stand_in())
    long, short = module.sample(step(), wave(50), 16), module.sample(step(), wave(50), 8)
    assert torch.allclose(long[:8], short, atol=1e-5)


def test_points_are_fed_once_and_equal_the_full_pass(stand_in: Make) -> None:
    module, trunk = make(POINT), stand_in()
    lengths, inner = [], trunk.step()

    def step(tokens: Tokens) -> Tokens:
        lengths.append(tokens.shape[1])
        return inner(tokens)

    forecast = module.sample(step, wave(24), 9)
    assert lengths == [24, 8]
    mean, deviation = module.scale(torch.from_numpy(wave(24)).double())
    scaled = torch.cat([(torch.from_numpy(wave(24)) - mean) / deviation, (forecast[:8] - mean) / deviation]).float()
    hidden = trunk(module.tokens(scaled[None], torch.ones(1, 32, dtype=torch.bool)))
    last = module.heads(hidden.embedding[:, -1], 0)[0] * deviation + mean
    assert torch.allclose(last.float(), forecast[8:], atol=1e-4)


@BOTH
def test_a_scaled_and_shifted_series_has_the_scaled_and_shifted_forecast(
    stand_in: Make, options: dict[str, Any]
) -> None:
    module = make(options)
    step = stepper(module, stand_in())
    forecast = module.sample(step(), wave(40), 13)
    moved = module.sample(step(), 1000 * wave(40).astype(np.float64) - 300, 13)
    assert torch.allclose(moved, 1000 * forecast - 300, rtol=1e-3, atol=0.5)
    assert not torch.allclose(forecast, forecast[0].expand(13), atol=1e-3)


@BOTH
def test_a_constant_series_is_answered_with_its_constant(stand_in: Make, options: dict[str, Any]) -> None:
    module = make(options)
    step = stepper(module, stand_in())
    low, high = (module.sample(step(), np.full(40, value), 9) for value in (0.0, 7.0))
    assert (low == 0).all() and (high == 7).all()
    batch = module.collate([module.example({"series": np.full(40, 3.0)})], seeded())
    assert not batch["past"].any() and not batch["future"].any()


@BOTH
def test_bad_requests_are_named(stand_in: Make, options: dict[str, Any]) -> None:
    module = make(options)
    step = stepper(module, stand_in())
    least = module.spec.minimum
    with pytest.raises(ValueError, match="horizon: got 0"):
        module.sample(step(), wave(40), 0)
    with pytest.raises(ValueError, match=f"series: got {least - 1} values, expected at least {least}"):
        module.sample(step(), wave(least - 1), 4)
    with pytest.raises(ValueError, match=f"series: got {least} values, expected at least {least + 1}"):
        module.example({"series": wave(least)})
    with pytest.raises(ValueError, match="series: value at index 3 is nan"):
        module.sample(step(), [0.0, 1.0, 2.0, float("nan"), *range(20)], 4)
    with pytest.raises(ValueError, match=r"series: got shape \[2, 2, 6\]"):
        module.sample(step(), np.zeros((2, 2, 6)), 4)
    with pytest.raises(ValueError, match=r"series: no key 'series' in the example; it has \['values'\]"):
        module.example({"values": wave(40)})
