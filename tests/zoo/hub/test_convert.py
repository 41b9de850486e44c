"""Checkpoints of training to saved models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.hub.convert import convert
from zoo.hub.tensors import WeightsError
from zoo.models.unified import Unified
from zoo.spec import SpecError, dump


@pytest.fixture
def checkpoint(model: Unified) -> dict[str, Any]:
    """What Lightning writes for our module, the parts that matter."""
    state = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    return {"state_dict": state, "hyper_parameters": {"spec": dump(model.spec), "lr": 1e-3}, "epoch": 3}


def written(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_a_checkpoint_becomes_a_saved_model(model: Unified, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    folder = convert(written(checkpoint, tmp_path / "last.ckpt"), tmp_path / "m")
    loaded = zoo.load(folder)
    assert loaded.spec == model.spec
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_an_existing_folder_is_refused_before_anything_is_read(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    path = written(checkpoint, tmp_path / "last.ckpt")
    convert(path, tmp_path / "m")
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert(tmp_path / "not-there.ckpt", tmp_path / "m")
    convert(path, tmp_path / "m", overwrite=True)


def test_every_tensor_is_used_and_none_is_left(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    state = checkpoint["state_dict"]
    state["model.surplus"] = torch.zeros(1)
    state["metric"] = torch.zeros(1)
    del state["model.backbone.norm.weight"]
    with pytest.raises(WeightsError) as caught:
        convert(written(checkpoint, tmp_path / "last.ckpt"), tmp_path / "m")
    for what in ("missing backbone.norm.weight", "surplus surplus", "surplus metric"):
        assert what in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_what_is_no_checkpoint_is_named(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        convert(tmp_path / "nowhere.ckpt", tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="is a folder, expected a checkpoint file"):
        convert(tmp_path, tmp_path / "m")
    with pytest.raises(WeightsError, match=r"text.ckpt: not a checkpoint of torch.save \(5 bytes\)"):
        convert(tmp_path / "text.ckpt", tmp_path / "m")
    with pytest.raises(WeightsError, match=r"no Lightning checkpoint \(no 'state_dict'\); it holds weights"):
        convert(written({"weights": 1}, tmp_path / "other.ckpt"), tmp_path / "m")
    with pytest.raises(SpecError, match="hyper-parameters hold no 'spec'"):
        convert(written(checkpoint | {"hyper_parameters": {}}, tmp_path / "foreign.ckpt"), tmp_path / "m")


def test_a_truncated_checkpoint_is_named(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    path = written(checkpoint, tmp_path / "last.ckpt")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        convert(path, tmp_path / "m")
