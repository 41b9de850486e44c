"""How often an independent classifier, trained on real images, sees the class that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modalities.base import Raw, Score, Step
from modalities.diffusion.module import Diffusion
from modalities.vision.evaluate import spread
from modalities.vision.files import from_tensor, grid, to_tensor, write_png

BATCH = 100
PER_CLASS = 20
MOST = 4000  # real images that the classifier reads, for its time grows with their square
THRESHOLD = 0.30  # share a classifier must recognise; chance is 10 % with ten classes


def evaluate(
    modality: Diffusion,
    new_step: Callable[[], Step],
    train: Sequence[Raw],
    test: Sequence[Raw],
    *,
    generator: torch.Generator,
    out: Path | None = None,
    limit: int | None = None,
) -> list[Score]:
    """Accuracy on 20 samples per class, at most `limit` in all. With `out`, `images.png` has a row per class."""
    images, labels = _pixels(modality, spread(train, MOST))
    classes = np.unique(labels)
    per_class = PER_CLASS if limit is None else max(1, min(PER_CLASS, limit // len(classes)))
    wanted = np.repeat(classes, per_class)
    conditions = _conditions(modality, train, wanted)
    step = new_step()
    parts = [
        modality.sample(step, conditions[i : i + BATCH], generator=generator) for i in range(0, len(wanted), BATCH)
    ]
    samples = torch.cat(parts).numpy()
    if out is not None:
        write_png(out / "images.png", grid(samples, columns=per_class))
    judge = _classifier(images, labels)
    share = float((judge.predict(samples.reshape(len(samples), -1) / 255) == wanted).mean())
    real_images, real_labels = _pixels(modality, spread(test, MOST))
    real = float((judge.predict(real_images) == real_labels).mean())
    note = f"{len(wanted)} samples; the classifier reads {real:.1%} of real test images; baseline: fixed threshold"
    return [Score("recognised", share, THRESHOLD, True, "share", note)]


def _classifier(images: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
    """A support vector machine with a radial kernel on pixels, which shares nothing with the model."""
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma="scale").fit(images, labels)


def _pixels(modality: Diffusion, raws: Sequence[Raw]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Labelled images as rows in [0, 1], sized as the modality generates them, and their labels."""
    found = [raw for raw in raws if "label" in raw]
    if not found:
        raise ValueError("diffusion evaluation: no labelled images, expected raw examples with a `label`")
    sized = [from_tensor(to_tensor(raw["image"], modality.spec.size, modality.spec.channels)) for raw in found]
    return torch.stack(sized).flatten(1).numpy() / 255, np.array([int(raw["label"]) for raw in found])


def _conditions(modality: Diffusion, raws: Sequence[Raw], wanted: NDArray[np.int64]) -> list[Any]:
    """What to ask for: the class numbers themselves, or for each the text of its first training image."""
    if modality.spec.condition == "class":
        return [int(label) for label in wanted]
    prompts: dict[int, str] = {}
    for raw in raws:
        if "label" in raw:
            prompts.setdefault(int(raw["label"]), str(raw["text"]))
    return [prompts[int(label)] for label in wanted]
