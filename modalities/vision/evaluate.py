"""Accuracy on held-out images, beside the nearest class mean on pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modalities.base import Raw, Score, Step
from modalities.vision.files import from_tensor, grid, write_png
from modalities.vision.module import Vision

BATCH = 128


def evaluate(
    modality: Vision,
    new_step: Callable[[], Step],
    train: Sequence[Raw],
    test: Sequence[Raw],
    *,
    generator: torch.Generator,
    out: Path | None = None,
    limit: int | None = None,
) -> list[Score]:
    """Accuracy on the test images, or on `limit` of them; with `out`, the wrong ones go to `vision_errors.png`."""
    train_images, train_labels = stack(modality, train)
    images, labels = stack(modality, spread(test, limit))
    baseline = nearest_mean_accuracy(train_images, train_labels, images, labels)
    step, device = new_step(), modality.query.device
    parts = [modality.classify(step, part.to(device)).argmax(-1).cpu() for part in images.split(BATCH)]
    right = torch.cat(parts) == labels
    if out is not None and not right.all():
        write_png(out / "vision_errors.png", grid(from_tensor(images[~right][:64]).numpy(), columns=16))
    note = f"{len(labels)} held-out images; baseline: nearest class mean on pixels"
    return [Score("accuracy", right.float().mean().item(), baseline, True, "share", note)]


def spread(raws: Sequence[Raw], limit: int | None) -> list[Raw]:
    """At most `limit` raw examples at even distances, so that a set in order of classes keeps them all."""
    count = len(raws) if limit is None else min(limit, len(raws))
    return [raws[i * len(raws) // count] for i in range(count)]


def stack(modality: Vision, raws: Sequence[Raw]) -> tuple[Tensor, Tensor]:
    """All labelled raw examples as images [N, C, H, W] and labels [N]."""
    examples = [e for e in map(modality.example, raws) if e["label"] >= 0]
    if not examples:
        raise ValueError("vision evaluation: no labelled images, expected raw examples with a `label`")
    return torch.stack([e["image"] for e in examples]), torch.stack([e["label"] for e in examples])


def nearest_mean_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Share of test images whose nearest class mean (Euclidean, on pixels) is that of their class."""
    known = train_labels.unique()
    means = torch.stack([train[train_labels == c].flatten(1).mean(0) for c in known])
    nearest = known[torch.cdist(test.flatten(1), means).argmin(1)]
    return (nearest == test_labels).float().mean().item()
