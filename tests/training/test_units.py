"""What modalities count ahead is what their loss and tokens say, on batches with padding in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modalities.base import Modality, ModalitySpec
from zoo.spec import parse

RNG = np.random.default_rng(0)
IMAGES = [
    {"image": RNG.integers(0, 255, (8, 8, 1), dtype=np.uint8), "label": i, "text": "ab" * (i + 1)} for i in range(3)
]
AUDIO = [
    {"audio": RNG.normal(size=2000 + 500 * i).astype(np.float32), "rate": 8000, "text": "one two"[: 3 + i]}
    for i in range(4)
]
SMALL = {"type": "vision", "size": 8, "channels": 1, "tower": {"type": "patch", "patch": 4}}
DIFFUSION = {"type": "diffusion", "size": 8, "channels": 1, "patch": 4}
CODEC = {"type": "log_mel_rvq", "codebooks": 2, "size": 8, "iterations": 2}
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "text": ({"type": "text", "length": 8}, [{"text": "ab"}, {"text": "abcdefghijkl"}]),
    "patches": (
        {"type": "time_series", "patch": 4, "context": 16, "heads": [4]},
        [{"series": RNG.normal(size=n)} for n in (7, 40)],
    ),
    "points": (
        {"type": "time_series", "embedding": "point", "context": 16, "heads": [1, 4]},
        [{"series": RNG.normal(size=n)} for n in (7, 40)],
    ),
    "class": (SMALL, [*IMAGES, {"image": IMAGES[0]["image"]}]),
    "words": ({**SMALL, "answer": "text", "classes": 3, "names": ["cat", "mouse", "ox"]}, IMAGES),
    "diffusion": (DIFFUSION, IMAGES),
    "prompted": ({**DIFFUSION, "condition": "text"}, IMAGES),
    "speech": ({"type": "speech", "codec": CODEC}, AUDIO),
    "notes": (
        {"type": "music", "representation": {"type": "notes", "length": 16}},
        [{"notes": RNG.integers(50, 70, (n, 4))} for n in (9, 30)],
    ),
    "frames": ({"type": "music", "representation": {"type": "codec", "codec": CODEC}}, AUDIO),
}


@pytest.mark.parametrize("case", CASES)
def test_units_agree_with_loss_and_tokens(case: str) -> None:
    plain, raws = CASES[case]
    torch.manual_seed(0)
    modality = parse(ModalitySpec, plain).build(16)
    modality.fit(raws)
    generator = torch.Generator().manual_seed(0)
    batch = modality.prepare(modality.collate([modality.example(raw) for raw in raws], generator), generator)
    counted, said = modality.units(batch), Modality.units(modality, batch)
    assert type(modality).units is not Modality.units
    assert [float(v) for v in counted] == pytest.approx([float(v) for v in said])
    assert float(said[0]) > 0 and float(said[1]) > 0
