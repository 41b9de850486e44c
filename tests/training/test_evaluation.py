"""Routing maps leave the model as they found it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.evaluation import routing_maps


def test_routing_maps_write_and_restore_the_mode_of_every_module(tiny: Any, tmp_path: Path) -> None:
    model = tiny.module().model.train()
    model.backbone.eval()
    good = [{"text": "to be"}, {"text": "or not"}]
    (path,) = routing_maps(model, {"text": (good, good)}, tmp_path)
    assert path.name == "routing_text.png" and path.exists()
    with pytest.raises(ValueError, match=r"^text:"):
        routing_maps(model, {"text": (good, [{"text": ""}])}, tmp_path)
    assert model.training and model.modality("text").training and not model.backbone.training
