"""Checking and scaling series of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

# A deviation below this share of the largest magnitude is rounding, not signal.
CONSTANT = 1e-6


def as_series(values: Any, minimum: int, *, batched: bool = False, name: str = "series") -> Tensor:
    """Numbers as a float64 tensor [n], or [B, n] where `batched` allows it. Messages begin with `name`.

    Raises ValueError on what is no number, on the wrong number of axes, on fewer than `minimum` values, and on the
    first value that is NaN or infinite, with its index.
    """
    try:
        series = torch.as_tensor(np.asarray(values, dtype=np.float64) if not isinstance(values, Tensor) else values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {type(values).__name__} ({error})") from error
    series = series.detach().to("cpu", torch.float64)
    if series.ndim not in ((1, 2) if batched else (1,)):
        shapes = "[n] or [B, n]" if batched else "[n], one series per channel"
        raise ValueError(f"{name}: got shape {list(series.shape)}, expected {shapes}")
    if series.shape[-1] < minimum:
        raise ValueError(f"{name}: got {series.shape[-1]} values, expected at least {minimum}; give a longer history")
    bad = (~series.isfinite()).nonzero()
    if len(bad):
        index = bad[0].tolist()
        at = index[0] if len(index) == 1 else index
        raise ValueError(
            f"{name}: value at index {at} is {series[tuple(index)].item()} ({len(bad)} such values); expected finite "
            "numbers, fill or cut the gap"
        )
    return series


def moments(series: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population deviation over the last axis, [..., 1] each, in the series' own precision.

    A constant series has deviation 1, so that it is centred only (the rule of Time-MoE; no epsilon elsewhere).
    """
    mean = series.mean(-1, keepdim=True)
    deviation = (series - mean).square().mean(-1, keepdim=True).sqrt()
    constant = deviation <= CONSTANT * series.abs().amax(-1, keepdim=True)
    return mean, deviation.masked_fill(constant, 1.0)
