"""The time-series modality: values to tokens, hidden states to forecasts of several horizons."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.base import Batch, Loss, Modality, Raw, Step, Tokens
from modalities.time_series.horizons import HorizonHeads, schedule
from modalities.time_series.spec import TimeSeriesSpec
from modalities.time_series.values import as_series, moments


class GatedEmbedding(nn.Module):
    """SiLU(G x) * (E x) without biases (Time-MoE, equation 2): [..., values] to [..., D]."""

    def __init__(self, values: int, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(values, dim, bias=False)
        self.value = nn.Linear(values, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Values to embeddings, in the precision of the weights."""
        x = x.to(self.gate.weight.dtype)
        return F.silu(self.gate(x)) * self.value(x)


class TimeSeries(Modality):
    """What points and patches share: windows, normalisation, loss, forecasts put together from the heads."""

    def __init__(self, spec: TimeSeriesSpec, dim: int, unit: int) -> None:
        super().__init__()
        self.spec, self.unit = spec, unit
        self.embedding = GatedEmbedding(unit, dim)
        self.heads = HorizonHeads(dim, spec.heads)

    def example(self, raw: Raw) -> dict[str, Tensor]:
        """{"series": [n]} to {"series": float32 [n]}; at least one context's minimum and a value to forecast.

        Raises ValueError as `values.as_series` does.
        """
        if "series" not in raw:
            raise ValueError(f"series: no key 'series' in the example; it has {sorted(raw)}")
        name = f"series {raw['name']!r}" if "name" in raw else "series"
        return {"series": as_series(raw["series"], self.spec.minimum + 1, name=name).float()}

    def collate(self, examples: Sequence[Mapping[str, Tensor]], generator: torch.Generator) -> Batch:
        """A random window of each series, scaled by its context's own mean and deviation.

        past [B, C] and past_mask (padded on the left), future [B, H] and future_mask (padded on the right), H the
        longest head. A series too short for a whole window gives a shorter context or fewer targets.
        """
        longest = self.spec.heads[-1]
        past = torch.zeros(len(examples), self.spec.context)
        future = torch.zeros(len(examples), longest)
        past_mask, future_mask = torch.zeros_like(past, dtype=torch.bool), torch.zeros_like(future, dtype=torch.bool)
        for row, example in enumerate(examples):
            series = example["series"]
            last = max(len(series) - longest, self.spec.minimum)
            first = min(self.spec.context, last)
            origin = first + int(torch.randint(last - first + 1, (), generator=generator))
            before, after = self.context(series[:origin].double()), series[origin : origin + longest].double()
            mean, deviation = self.scale(before)
            past[row, -len(before) :] = (before - mean) / deviation
            future[row, : len(after)] = (after - mean) / deviation
            past_mask[row, -len(before) :] = True
            future_mask[row, : len(after)] = True
        return {"past": past, "past_mask": past_mask, "future": future, "future_mask": future_mask}

    def context(self, series: Tensor) -> Tensor:
        """The end of [..., n] that is read: at most `context` values, whole tokens only."""
        length = min(series.shape[-1], self.spec.context)
        return series[..., series.shape[-1] - length + length % self.unit :]

    def scale(self, series: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [..., 1] a context is scaled with: 0 and 1 without `normalise`."""
        if not self.spec.normalise:
            return torch.zeros_like(series[..., :1]), torch.ones_like(series[..., :1])
        return moments(series)

    def tokens(self, values: Tensor, mask: Tensor, start: int = 0) -> Tokens:
        """Scaled values [B, n] and their mask to causal tokens [B, n / unit, D]; positions count real tokens."""
        rows = values.unflatten(1, (-1, self.unit))
        real = mask.unflatten(1, (-1, self.unit)).any(-1)
        position = (real.cumsum(1) - 1).clamp(min=0).unsqueeze(-1) + start
        return Tokens(embedding=self.embedding(rows), mask=real, position=position)

    def encode(self, batch: Batch) -> Tokens:
        """The contexts of a batch as tokens."""
        return self.tokens(batch["past"], batch["past_mask"])

    def decode(self, hidden: Tokens) -> Tensor:
        """Forecasts of the longest head at every position, [B, S, heads[-1]], in the scaled units of the context."""
        return self.heads(hidden.embedding, len(self.spec.heads) - 1)

    @abstractmethod
    def targets(self, hidden: Tokens, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The positions that forecast: hidden [N, D], the values after each [N, H] and which of them are real."""

    def loss(self, hidden: Tokens, batch: Batch) -> Loss:
        """Huber (delta 2) or squared error, mean over heads and over each head's horizon; summed over positions that
        forecast. Metrics: the squared error of each head, in scaled units."""
        states, target, real = self.targets(hidden, batch)
        losses, squares = self.heads.errors(states, target, real, self.spec.loss)
        count = real.any(1).sum()
        metrics = {f"mse_{p}": (s.sum(), count) for p, s in zip(self.spec.heads, squares, strict=True)}
        return Loss(losses.sum(), count, metrics)

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Positions that forecast, and tokens with a value in them."""
        real = batch["past_mask"].unflatten(1, (-1, self.unit)).any(-1)
        wanted = self.targets(Tokens(embedding=real.unsqueeze(-1)), batch)[2]
        return wanted.any(1).sum(), real.sum()

    @torch.no_grad()
    def sample(self, step: Step, series: Any, horizon: int) -> Tensor:
        """The next `horizon` values after a series [n] or [B, n]: float32 [horizon] or [B, horizon], in its own units.

        Each pass reads the last position of the largest head that fits the rest and appends its values to what has
        been read (Time-MoE, section 3.2). Scaling is that of the given context throughout; a normalised context that is
        constant is answered with that constant.
        Raises ValueError on a horizon below 1 and on series that `values.as_series` refuses.
        """
        passes = schedule(self.spec.heads, horizon)
        given = as_series(series, self.spec.minimum, batched=True)
        context = self.context(given.view(-1, given.shape[-1]))
        mean, deviation = self.scale(context)
        values = ((context - mean) / deviation).float().to(self.heads.maps[0].weight.device)  # type: ignore[arg-type]
        forecast = self.assemble(step, values, passes).cpu().double() * deviation + mean
        if self.spec.normalise:
            forecast = torch.where((context == context[:, :1]).all(-1, keepdim=True), context[:, :1], forecast)
        return forecast.float().view(*given.shape[:-1], horizon)

    @abstractmethod
    def assemble(self, step: Step, values: Tensor, passes: Sequence[tuple[int, int]]) -> Tensor:
        """Runs the passes after scaled contexts [B, n]; returns scaled forecasts [B, horizon]."""


class PointSeries(TimeSeries):
    """A token per value, causal; every position forecasts; earlier keys and values are kept between passes."""

    incremental: ClassVar[bool] = True

    def __init__(self, spec: TimeSeriesSpec, dim: int) -> None:
        super().__init__(spec, dim, unit=1)

    def targets(self, hidden: Tokens, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """All real positions."""
        longest, keep = self.spec.heads[-1], batch["past_mask"]
        values = torch.cat([batch["past"], batch["future"]], 1).unfold(1, longest, 1)[:, 1:]
        real = torch.cat([batch["past_mask"], batch["future_mask"]], 1).unfold(1, longest, 1)[:, 1:]
        return hidden.embedding[keep], values[keep], real[keep]

    def assemble(self, step: Step, values: Tensor, passes: Sequence[tuple[int, int]]) -> Tensor:
        """Feeds the context once, then only the values of the pass before."""
        new, seen, parts = values, 0, []
        for head, take in passes:
            hidden = step(self.tokens(new, torch.ones_like(new, dtype=torch.bool), start=seen))
            seen, new = seen + new.shape[1], self.heads(hidden.embedding[:, -1], head)[:, :take].float()
            parts.append(new)
        return torch.cat(parts, 1)


class PatchSeries(TimeSeries):
    """A token per patch; the patches of a context see each other and the last one forecasts; passes stand alone."""

    incremental: ClassVar[bool] = False

    def __init__(self, spec: TimeSeriesSpec, dim: int) -> None:
        super().__init__(spec, dim, unit=spec.patch)

    def tokens(self, values: Tensor, mask: Tensor, start: int = 0) -> Tokens:
        """As points, but all patches of a row lie in one bidirectional span."""
        tokens = super().tokens(values, mask, start)
        shape, device = tokens.shape, values.device
        return tokens.replace(
            span=torch.zeros(shape, dtype=torch.int64, device=device),
            bidirectional=torch.ones(shape, dtype=torch.bool, device=device),
        )

    def targets(self, hidden: Tokens, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The last patch of each row."""
        return hidden.embedding[:, -1], batch["future"], batch["future_mask"]

    def assemble(self, step: Step, values: Tensor, passes: Sequence[tuple[int, int]]) -> Tensor:
        """Reads the last `context` values, forecasts included, anew in every pass."""
        horizon = sum(take for _, take in passes)
        for head, take in passes:
            context = self.context(values)
            hidden = step(self.tokens(context, torch.ones_like(context, dtype=torch.bool)))
            values = torch.cat([values, self.heads(hidden.embedding[:, -1], head)[:, :take].float()], 1)
        return values[:, -horizon:]
