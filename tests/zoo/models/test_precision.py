"""A model cast to bfloat16 still takes the float32 batches its modalities make, and answers nearly the same."""

from typing import Any

import pytest
import torch

import zoo

IMAGE = {"size": 8, "channels": 1, "classes": 3}
MODALITIES = {
    "vision": {"type": "vision", **IMAGE, "tower": {"type": "patch", "patch": 4}},
    "drawn": {"type": "diffusion", **IMAGE, "patch": 4},
    "points": {"type": "time_series", "embedding": "point", "context": 16, "heads": [2, 8]},
    "patches": {"type": "time_series", "embedding": "patch", "patch": 4, "context": 16, "heads": [2, 8]},
}
IMAGES = [{"image": torch.arange(64).mul(4).view(8, 8, 1).to(torch.uint8).numpy(), "label": i} for i in range(3)]
SERIES = [{"series": torch.linspace(0, 6 + i, 40).sin().numpy()} for i in range(3)]


@pytest.mark.parametrize("name", list(MODALITIES))
def test_bfloat16_weights(name: str) -> None:
    block = {"type": "adaln", "attention": {"heads": 2}, "ffn": {"type": "dense", "hidden": 16}}
    backbone = {"dim": 16, "cond": 16, "rope": {"axes": 2}, "layers": [{"repeat": 1, "block": block}]}
    spec: dict[str, Any] = {"type": "unified", "backbone": backbone, "modalities": {name: MODALITIES[name]}}
    model, draw = zoo.create(spec), torch.Generator().manual_seed(0)
    modality = model.modality(name)
    raws = IMAGES if name in ("vision", "drawn") else SERIES
    batch = modality.prepare(modality.collate([modality.example(raw) for raw in raws], draw), draw)
    with torch.no_grad():
        exact = model(name, batch).loss
        half = model.to(torch.bfloat16)(name, batch).loss
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, exact.total, rtol=0.05, atol=0.05)


def test_rates_of_the_time_embedding_keep_their_precision() -> None:
    """Angles go up to 1000, so rates rounded to bfloat16 would turn them by radians."""
    from modalities.diffusion.conditions import TimeEmbedding

    embedding, seen = TimeEmbedding(8), []
    embedding.mlp[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].float()))
    time = torch.tensor([0.3, 0.97])
    embedding(time)
    embedding.to(torch.bfloat16)(time)
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0.01)
