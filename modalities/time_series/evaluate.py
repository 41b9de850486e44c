"""Squared error of forecasts on held-out rows, beside the better of two naive forecasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from modalities.base import Raw, Score, Step
from modalities.time_series.files import draw_forecast
from modalities.time_series.module import TimeSeries

HORIZONS = (24, 96)
ROWS = 128


def origins(raw: Raw, minimum: int, horizon: int, limit: int | None) -> np.ndarray:
    """First forecast rows whose whole horizon is held out; `limit` keeps that many, evenly spaced."""
    first, last = max(raw.get("start", minimum), minimum), len(raw["series"]) - horizon
    found = np.arange(first, last + 1)
    if limit is not None and limit < len(found):
        found = found[np.linspace(0, len(found) - 1, limit).round().astype(int)]
    return found


def naive(series: np.ndarray, origin: int, horizon: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """The last value held, and the last season repeated (the last value where there is no whole season), [horizon]."""
    last = np.full(horizon, series[origin - 1])
    if origin < period:
        return last, last
    return last, np.resize(series[origin - period : origin], horizon)


def compare(
    modality: TimeSeries, new_step: Callable[[], Step], test: Sequence[Raw], horizon: int, limit: int | None
) -> tuple[float, float, float, int]:
    """Mean squared error of the model, of the last value and of the last season, and the number of windows."""
    minimum, squares, count = modality.spec.minimum, np.zeros(3), 0
    for raw in test:
        series = np.asarray(raw["series"], dtype=np.float32)
        at = origins(raw, minimum, horizon, limit)
        # Rows of one batch need contexts of equal length; only near the beginning of a series are there shorter ones.
        for length in np.unique(np.minimum(at, modality.spec.context)):
            same = at[np.minimum(at, modality.spec.context) == length]
            for group in np.split(same, range(ROWS, len(same), ROWS)):
                contexts = np.stack([series[o - length : o] for o in group])
                truth = np.stack([series[o : o + horizon] for o in group])
                last, season = zip(*(naive(series, o, horizon, raw.get("period", 24)) for o in group), strict=True)
                forecast = modality.sample(new_step(), contexts, horizon).numpy()
                forecasts = np.stack([forecast, np.stack(last), np.stack(season)])
                squares += np.square(forecasts - truth, dtype=np.float64).sum((1, 2))
                count += len(group)
    if not count:
        raise ValueError(f"test: no series has {horizon} held-out values after {minimum}, expected at least one")
    model, last_value, seasonal = squares / (count * horizon)
    return model, last_value, seasonal, count


def evaluate(
    modality: TimeSeries,
    new_step: Callable[[], Step],
    train: Sequence[Raw],
    test: Sequence[Raw],
    *,
    generator: torch.Generator,
    out: Path | None = None,
    limit: int | None = None,
) -> list[Score]:
    """Mean squared error at horizons 24 and 96, over all held-out series and windows, in the scaled units of the data.

    The baseline is the better of last value and seasonal naive, on the same windows; both need no fitting, so `train`
    and `generator` are not used. `limit` bounds the windows per horizon, spread evenly over the held-out rows.
    Writes `forecast.png` (the last series, its longest horizon) to the folder `out`.
    """
    share = None if limit is None else max(limit // len(test), 1)
    scores = []
    for horizon in HORIZONS:
        model, last, season, count = compare(modality, new_step, test, horizon, share)
        note = f"{count} windows of {len(test)} series; last value {last:.3f}, seasonal naive {season:.3f}"
        name = f"MSE at {horizon}"
        scores.append(Score(name, model, min(last, season), higher=False, unit="squared deviations", note=note))
    if out is not None:
        picture(modality, new_step(), test[-1], HORIZONS[-1], Path(out) / "forecast.png")
    return scores


def picture(modality: TimeSeries, step: Step, raw: Raw, horizon: int, path: Path) -> Path:
    """Draws the forecast from the first held-out row of a series, in the units of its source."""
    series = np.asarray(raw["series"], dtype=np.float32)
    origin = int(origins(raw, modality.spec.minimum, horizon, None)[0])
    context = series[max(origin - modality.spec.context, 0) : origin]
    forecast = modality.sample(step, context, horizon).numpy()
    truth = series[origin : origin + horizon]
    back = [x * raw.get("std", 1.0) + raw.get("mean", 0.0) for x in (context, truth, forecast)]
    name, unit = raw.get("name", "series"), raw.get("unit", "")
    return draw_forecast(path, *back, title=str(name), step=str(raw.get("step", "steps")), unit=str(unit))
