"""The description of the time-series modality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from modalities.base import Modality, ModalitySpec

if TYPE_CHECKING:
    from modalities.time_series.module import TimeSeries


@dataclass(frozen=True, kw_only=True)
class TimeSeriesSpec(ModalitySpec):
    """One channel of a time series in, its continuation out (Time-MoE, arXiv 2409.16040, with patches as an option).

    embedding   `point`: a token per value, causal, every position forecasts; `patch`: a token per patch, the patches
                of a context see each other, the last one forecasts
    patch       values per token of the embedding `patch`
    context     values read before a forecast
    heads       how many values each head forecasts at once, ascending; a forecast is put together from them
    normalise   whether a context is centred and divided by its own deviation
    loss        `huber` (delta 2) or `mse`, in the units the model sees
    """

    embedding: Literal["point", "patch"] = "patch"
    patch: int = 24
    context: int = 336
    heads: tuple[int, ...] = (24, 96)
    normalise: bool = True
    loss: Literal["huber", "mse"] = "huber"

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ValueError(f"patch: got {self.patch}, expected at least 1")
        if self.context < self.minimum:
            raise ValueError(f"context: got {self.context}, expected at least {self.minimum}")
        if self.embedding == "patch" and self.context % self.patch:
            raise ValueError(f"context: got {self.context}, expected a multiple of patch ({self.patch})")
        if not self.heads or self.heads[0] < 1 or any(a >= b for a, b in zip(self.heads, self.heads[1:], strict=False)):
            raise ValueError(f"heads: got {list(self.heads)}, expected ascending horizons such as [1, 8, 32]")

    @property
    def minimum(self) -> int:
        """The fewest values a forecast can start from: one whole patch, or two points."""
        return self.patch if self.embedding == "patch" else 2

    def build(self, dim: int, text: Modality | None = None) -> TimeSeries:
        """The module; `text` is not used."""
        from modalities.time_series.module import PatchSeries, PointSeries

        return PatchSeries(self, dim) if self.embedding == "patch" else PointSeries(self, dim)

    def parameters(self, dim: int) -> int:
        """The gated embedding and one linear map per head, none with a bias."""
        return dim * (2 * (self.patch if self.embedding == "patch" else 1) + sum(self.heads))
