"""What every modality speaks: `Tokens` between files and trunk, and the `Modality` protocol.

One direction, no way back::

    raw files -> data -> example -> collate -> prepare -> encode -> Tokens -> trunk -> Tokens -> loss | sample -> files

Nothing here knows the trunk: a modality is driven by `step: Tokens -> Tokens`, whatever stands behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Step = Callable[["Tokens"], "Tokens"]
Raw = Mapping[str, Any]
Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A batch of token rows, as the trunk reads and returns it.

    Position i attends to j in the same document when j <= i, or when both lie in the same bidirectional span. An
    optional field that is None has its plain meaning: every token is real, one document, everything causal, positions
    0, 1, 2 ...

    embedding      [B, S, D]   float
    mask           [B, S]      bool, False on padding
    position       [B, S, P]   rotary position on P axes (1 text, 2 image, 3 video); integer or float
    modality       [B, S]      int64, index of the modality in its model (for traces and statistics)
    document       [B, S]      int64, packing: tokens of different documents never see each other
    span           [B, S]      int64, spans of tokens
    bidirectional  [B, S]      bool, whether the token's span is seen in both directions
    cond           [B, C]      conditioning of the whole row (time step, class) for adaptive norms
    ids            [B, S]      int64, token ids where there are any (-1 elsewhere)
    weight         [B, S]      float, how much a token counts in the balance of experts; None for 1
    """

    embedding: Tensor
    mask: Tensor | None = None
    position: Tensor | None = None
    modality: Tensor | None = None
    document: Tensor | None = None
    span: Tensor | None = None
    bidirectional: Tensor | None = None
    cond: Tensor | None = None
    ids: Tensor | None = None
    weight: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, S)."""
        return self.embedding.shape[0], self.embedding.shape[1]

    @property
    def real(self) -> Tensor:
        """Number of tokens that are not padding, a scalar."""
        if self.mask is None:
            return torch.tensor(self.shape[0] * self.shape[1], device=self.embedding.device)
        return self.mask.sum()

    def replace(self, **changes: Any) -> Tokens:
        """A copy with some fields exchanged."""
        return dataclasses.replace(self, **changes)


def cat_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Joins token rows along the sequence: one document, positions of each part kept as given, spans kept apart.

    Parts without positions continue the counting of the part before them (on its largest position + 1).
    All parts need the same batch size; `cond` is taken from the first part that has one.
    """
    if not parts:
        raise ValueError("parts: got an empty list, expected at least one Tokens")
    device, rows = parts[0].embedding.device, parts[0].shape[0]

    def column(values: list[Tensor | None], default: int, dtype: torch.dtype) -> Tensor | None:
        if all(v is None for v in values):
            return None
        return torch.cat(
            [
                torch.full(p.shape, default, dtype=dtype, device=device) if v is None else v.to(dtype)
                for p, v in zip(parts, values, strict=True)
            ],
            dim=1,
        )

    axes = max((p.position.shape[-1] for p in parts if p.position is not None), default=1)
    positions, start = [], torch.zeros(rows, 1, 1, device=device)
    for part in parts:
        if part.position is None:
            position = start + torch.arange(part.shape[1], device=device).view(1, -1, 1)
            position = position.expand(rows, -1, axes)
        else:
            position = part.position.expand(-1, -1, axes).to(start.dtype)
        positions.append(position)
        if part.shape[1]:
            start = position.amax(dim=(1, 2), keepdim=True) + 1
    spans: list[Tensor | None] = []
    offset = 0
    for part in parts:
        span = torch.zeros(part.shape, dtype=torch.int64, device=device) if part.span is None else part.span
        spans.append(span + offset)
        offset += int(span.max()) + 1 if span.numel() else 0
    has_span = any(p.bidirectional is not None for p in parts)
    return Tokens(
        embedding=torch.cat([p.embedding for p in parts], dim=1),
        mask=column([p.mask for p in parts], 1, torch.bool),
        position=torch.cat(positions, dim=1),
        modality=column([p.modality for p in parts], 0, torch.int64),
        document=column([p.document for p in parts], 0, torch.int64),
        span=torch.cat([s for s in spans if s is not None], dim=1) if has_span else None,
        bidirectional=column([p.bidirectional for p in parts], 0, torch.bool),
        cond=next((p.cond for p in parts if p.cond is not None), None),
        ids=column([p.ids for p in parts], -1, torch.int64),
        weight=column([p.weight for p in parts], 1, torch.float32),
    )


def pad_rows(rows: Sequence[Tensor], value: float = 0, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Stacks [n_i, ...] tensors to [B, n, ...] padded at the end; returns it with its mask [B, n], False on padding."""
    longest = max((len(r) for r in rows), default=0) if length is None else length
    out = rows[0].new_full((len(rows), longest, *rows[0].shape[1:]), value)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
        mask[i, : len(row)] = True
    return out, mask


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and what it was summed over, so that a whole optimiser step is divided once.

    total    scalar, differentiable: the sum over `count` units (target tokens, patches, points)
    count    scalar: the number of units, padding excluded
    metrics  name -> (sum, count), not differentiable, for logs
    """

    total: Tensor
    count: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One row of an evaluation: a figure on held-out data beside the baseline it has to beat.

    `higher` says which direction is better; `bound`, where set, is what must beat the baseline in place of `value`
    (the end of a confidence interval).
    """

    name: str
    value: float
    baseline: float
    higher: bool
    unit: str
    note: str = ""
    bound: float | None = None

    @property
    def won(self) -> bool:
        """Whether the figure (or its bound) beats the baseline. NaN never wins."""
        value = self.value if self.bound is None else self.bound
        return bool(value > self.baseline if self.higher else value < self.baseline)


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """The description of a modality. Its `type` key is looked up in the registry under the kind "modality".

    axes  number of rotary position axes its tokens use; a trunk has as many, or the modality uses one
    """

    kind: ClassVar[str] = "modality"
    axes: ClassVar[int] = 1

    def check(self, dim: int, cond: int) -> None:
        """Raises ValueError("key: ...") where the modality does not fit a trunk of width `dim` whose rows are
        conditioned on `cond` values (0: not at all)."""

    def build(self, dim: int, text: Modality | None = None) -> Modality:
        """The module for a trunk of width `dim`. `text` is the model's text modality, where it has one:
        transcripts, captions and class prompts use its tokenizer, embedding and head."""
        raise NotImplementedError

    def parameters(self, dim: int) -> int:
        """Number of parameters of the built module, those borrowed from `text` excluded."""
        raise NotImplementedError


class Modality(nn.Module):
    """Files to tokens and back, for one kind of data.

    incremental  whether `sample` feeds only new tokens to `step`, which then keeps a key/value cache; where False
                 every call of `step` stands alone (bidirectional spans, diffusion).
    """

    incremental: ClassVar[bool] = True

    def fit(self, examples: Iterable[Raw]) -> None:
        """Fits what is fitted and not trained (codec codebooks, feature statistics) on raw training examples.
        Results live in buffers, so they are saved with the weights. Nothing to fit by default."""

    def example(self, raw: Raw) -> dict[str, Tensor]:
        """One raw example (as `data` yields it) to tensors, deterministic; may be cached by the caller."""
        raise NotImplementedError

    def collate(self, examples: Sequence[Mapping[str, Tensor]], generator: torch.Generator) -> Batch:
        """Examples to one padded batch on the CPU. Random crops and task choice draw from `generator`."""
        raise NotImplementedError

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Adds what is drawn anew at each step (noise, time steps, dropped conditions). Nothing by default."""
        return batch

    def encode(self, batch: Batch) -> Tokens:
        """Batch to tokens [B, S, D]."""
        raise NotImplementedError

    def decode(self, hidden: Tokens) -> Tensor:
        """Final hidden states [B, S, D] to this modality's outputs (logits, noise, forecasts)."""
        raise NotImplementedError

    def loss(self, hidden: Tokens, batch: Batch) -> Loss:
        """The training loss of the trunk's answer to `encode(batch)`, as a sum."""
        raise NotImplementedError

    @torch.no_grad()
    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(target units, real tokens) of a prepared batch, scalars: the `count` of its loss and what `encode` leaves
        unmasked, known before the trunk has run. This default encodes to find out; modalities count directly."""
        tokens = self.encode(batch)
        return self.loss(tokens, batch).count, tokens.real


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where raw examples come from. Its `type` key is looked up in the registry under the kind "data"."""

    kind: ClassVar[str] = "data"

    def available(self) -> bool:
        """Whether `build` can work here and now, without the network."""
        return True

    def build(self, split: str) -> Sequence[Raw]:
        """Raw examples of a split ("train", "validation" or "test"), by index, in a fixed order."""
        raise NotImplementedError
