"""The tokenizer and feature side of a model, without its trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.spec import SpecError


def test_it_makes_the_batches_that_training_makes(saved: Path, model: Any) -> None:
    processor = zoo.processor(saved)
    text = model.modalities["text"]
    expected = text.collate([text.example({"text": "hello"})], torch.Generator().manual_seed(0))
    found = processor("text", {"text": "hello"})
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)
    assert processor.tokenizer.decode(processor.tokenizer.encode("hello")) == "hello"
    assert processor("series", [{"series": np.arange(40.0)}] * 3)["past"].shape[0] == 3


def test_it_holds_no_trained_weights(saved: Path) -> None:
    assert all(p.is_meta for p in zoo.processor(saved).modalities.parameters() if p.requires_grad)


def test_what_was_fitted_comes_from_the_weights(tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "type": "unified",
        "backbone": {"dim": 8, "layers": [{"block": {"type": "sequential", "attention": {"heads": 1},
                                                     "ffn": {"type": "dense", "hidden": 8}}}]},
        "modalities": {"speech": {"type": "speech", "codec": {"type": "log_mel_rvq", "size": 8, "codebooks": 2}}},
    }  # fmt: skip
    model = zoo.create(plain)
    rng = np.random.default_rng(0)
    wave = rng.standard_normal(8000).astype(np.float32) * 0.1
    raw = {"audio": wave, "rate": 8000, "text": "one", "speaker": "ann"}
    speech: Any = model.modalities["speech"]
    speech.fit([raw])
    found = zoo.processor(zoo.save(model, tmp_path / "m"))
    fitted: Any = found.modalities["speech"]
    assert torch.equal(fitted.codec.entries, speech.codec.entries) and fitted.voices.known() == ["ann"]
    assert torch.equal(fitted.example(raw)["rows"], speech.example(raw)["rows"])
    with pytest.raises(ValueError, match="no text modality, so no tokenizer; it has speech"):
        found.tokenizer  # noqa: B018


def test_of_a_description_without_weights(plain: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    assert zoo.processor(plain)("text", {"text": "a"})["ids"].tolist() == [[256, 97]]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wrong_name_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no modality 'txt' \(did you mean 'text'\?\); there are text, series"):
        zoo.processor(saved)("txt", {"text": "a"})
    with pytest.raises(SpecError, match="unknown key"):
        zoo.processor({"type": "unified", "hello": 1})
