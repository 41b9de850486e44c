"""Saved models on the way of a training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import zoo
from training.callbacks.keep_weights import KeepWeights
from training.run import fit
from training.sources import build_data
from training.strategies.fsdp import Sharded
from zoo.cli import main


def test_the_newest_stay_and_make_one_model(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tiny.module(schedule="constant")
    data = build_data({"sources": tiny.sources(), "micro_batches": 1, "eval_batches": 1})
    options: dict[str, Any] = {"max_steps": 6, "progress": False, "tensorboard": False}
    fit(module, data, folder=tmp_path, callbacks=[KeepWeights(every=1, start=2, last=3)], **options)
    paths = sorted((tmp_path / "weights").iterdir())
    assert [path.name for path in paths] == ["step-00000004", "step-00000005", "step-00000006"]
    states = [zoo.load(path).state_dict() for path in paths]
    assert all(torch.equal(value, states[-1][name]) for name, value in module.model.state_dict().items())
    words = ["average", *map(str, paths), "--out", str(tmp_path / "merged"), "--decay", "0.5", "0.25"]
    assert main(words) == 0 and capsys.readouterr().out.strip().endswith("merged")
    name = next(name for name, value in states[0].items() if value.is_floating_point() and value.ndim == 2)
    expected = 0.5 * states[0][name] + 0.25 * states[1][name] + 0.25 * states[2][name]
    torch.testing.assert_close(zoo.load(tmp_path / "merged").state_dict()[name], expected)
    assert main([*words, "--weights", "1", "0", "0"]) == 2
    assert "--decay: stands for weights, so give one of both" in capsys.readouterr().err


def test_a_sharded_model_is_refused() -> None:
    trainer: Any = SimpleNamespace(strategy=Sharded())
    with pytest.raises(ValueError, match="KeepWeights: cannot save a model that ModelParallelStrategy shards"):
        KeepWeights(every=1).setup(trainer, None, "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [{"every": 0}, {"every": 1, "last": 0}])
def test_impossible_settings_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got 0, expected 1 or more"):
        KeepWeights(**keys)
