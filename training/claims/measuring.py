"""A language model on held-out text: the loss of every byte, and what its MoE layers did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from modalities.base import Raw
from modalities.text.evaluate import Window, windows
from modalities.text.module import Text
from zoo.models.answering import evaluating
from zoo.models.unified import Unified
from zoo.moe.record import LayerRecord

IGNORE = -100  # target of what is not scored
ROWS = 16  # windows read at once
DEAD = 0.01  # an expert with less than this part of the even share counts as dead


@dataclass(frozen=True)
class Layer:
    """What one MoE layer did to the tokens that were read.

    load     slots that chose each expert, null experts last, before policies
    routed   how many of the experts are routed
    tokens   tokens
    kept     slots left after policies
    entropy  mean entropy of the router's softmax, in nats
    """

    load: tuple[int, ...]
    routed: int
    tokens: int
    kept: int
    entropy: float

    @property
    def routed_k(self) -> float:
        """Routed experts that a token chose."""
        return sum(self.load[: self.routed]) / max(self.tokens, 1)

    @property
    def ratio(self) -> float:
        """Greatest over mean load of the routed experts; 1 is even."""
        load = self.load[: self.routed]
        return max(load) * self.routed / max(sum(load), 1)

    @property
    def dead(self) -> int:
        """Routed experts with less than 1 % of the even share of the routed slots."""
        load = self.load[: self.routed]
        return sum(count * self.routed < DEAD * max(sum(load), 1) for count in load)


@dataclass(frozen=True)
class Measured:
    """Held-out text as a model reads it.

    losses  [N] sum of the losses of each window's scored bytes, in nats
    counts  [N] its scored bytes
    layers  the MoE layers in order
    token   [T] loss of every byte that was scored, in the order of the windows
    used    [L, T] routed experts that served the token in front of that byte, after policies
    chosen  [L, T, K] its experts by layer, as long as all layers have as many slots (else empty)
    spread  [L, T] standard deviation of its router's logits over the experts
    """

    losses: np.ndarray
    counts: np.ndarray
    layers: tuple[Layer, ...]
    token: np.ndarray
    used: np.ndarray
    chosen: np.ndarray
    spread: np.ndarray

    @property
    def loss(self) -> float:
        """Nats per byte."""
        return float(self.losses.sum() / self.counts.sum())


def measure(model: Unified, name: str, raws: Sequence[Raw], limit: int) -> Measured:
    """Reads `limit` windows of held-out text, evenly spread, with the text modality of that name."""
    text = model.modality(name)
    assert isinstance(text, Text)
    held = windows(text, raws, limit)
    with evaluating(model), torch.inference_mode():
        parts = [read_windows(model, name, text, held[i : i + ROWS]) for i in range(0, len(held), ROWS)]
    return Measured(
        losses=np.concatenate([part.losses for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        layers=tuple(merge(layers) for layers in zip(*(part.layers for part in parts), strict=True)),
        token=np.concatenate([part.token for part in parts]),
        used=np.concatenate([part.used for part in parts], axis=1),
        chosen=np.concatenate([part.chosen for part in parts], axis=1),
        spread=np.concatenate([part.spread for part in parts], axis=1),
    )


def read_windows(model: Unified, name: str, text: Text, held: Sequence[Window]) -> Measured:
    """One batch of windows."""
    batch = text.batch([torch.tensor(window.ids) for window in held])
    target = batch["target"]
    for row, window in enumerate(held):
        target[row, : window.scored] = IGNORE
    out = model.run(text.encode(batch), name)
    logits = text.decode(out.tokens).float()
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="none")
    real = (target != IGNORE).flatten()
    return Measured(
        losses=each.view_as(target).sum(1).double().numpy(),
        counts=(target != IGNORE).sum(1).numpy(),
        layers=tuple(read(record) for record in out.records),
        token=each[real].numpy(),
        used=routed_counts(out.records, real),
        chosen=choices(out.records, real),
        spread=spreads(out.records, real),
    )


def read(record: LayerRecord) -> Layer:
    """A layer's statistics of one batch as plain numbers."""
    stats = record.stats
    return Layer(
        load=tuple(stats.load.tolist()),
        routed=stats.pool.routed,
        tokens=int(stats.tokens),
        kept=int(stats.kept),
        entropy=float(stats.entropy),
    )


def merge(parts: Sequence[Layer]) -> Layer:
    """One layer over several batches."""
    tokens = sum(part.tokens for part in parts)
    return Layer(
        load=tuple(map(sum, zip(*(part.load for part in parts), strict=True))),
        routed=parts[0].routed,
        tokens=tokens,
        kept=sum(part.kept for part in parts),
        entropy=sum(part.entropy * part.tokens for part in parts) / max(tokens, 1),
    )


def routed_counts(records: Sequence[LayerRecord], real: torch.Tensor) -> np.ndarray:
    """[L, T] routed experts that serve each of the chosen tokens."""
    served = [(r.routing.expert < r.stats.pool.routed).sum(1).view(r.copies, -1).sum(0) for r in records]
    return np.stack([s[real].numpy() for s in served]) if served else np.zeros((0, int(real.sum())), np.int64)


def choices(records: Sequence[LayerRecord], real: torch.Tensor) -> np.ndarray:
    """[L, T, K] experts of the chosen tokens; empty where the layers' numbers of slots differ, where tokens stand in a
    record several times, or where there is no layer."""
    if len({record.routing.expert.shape[1] for record in records}) != 1 or any(r.copies > 1 for r in records):
        return np.zeros((0, int(real.sum()), 0), np.int64)
    return np.stack([record.routing.expert[real].numpy() for record in records])


def spreads(records: Sequence[LayerRecord], real: torch.Tensor) -> np.ndarray:
    """[L, T] standard deviations over the experts of the logits of the chosen tokens."""
    each = [r.routing.logits.std(dim=-1, correction=0).view(r.copies, -1).mean(0) for r in records]
    return np.stack([e[real].float().numpy() for e in each]) if each else np.zeros((0, int(real.sum())), np.float32)
