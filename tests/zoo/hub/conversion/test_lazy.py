"""Weights that are read one by one: the same numbers, few at a time, and files as the format's own library writes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import zoo
from zoo.hub import config, files
from zoo.hub.conversion import checkpoint
from zoo.hub.conversion.lazy import KEPT, OnDisk
from zoo.hub.tensors import WeightsError


def on_disk(folder: Path, dtype: torch.dtype | None = None) -> OnDisk:
    return OnDisk(checkpoint.plan(folder, config.content(folder / "config.json")), dtype)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_it_holds_what_load_gives(write: Any, dtype: torch.dtype | None) -> None:
    source = write()
    source.shard()
    expected, found = zoo.load(source.folder, dtype=dtype).state_dict(), on_disk(source.folder, dtype)
    assert found.keys() == expected.keys() and len(found) == len(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_few_tensors_are_held_at_a_time(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(num_hidden_layers=6)
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    read = OnDisk._read

    def noted(self: OnDisk, name: str) -> Tensor:
        nonlocal most
        value = read(self, name)
        alive.append(weakref.ref(value))
        most = max(most, sum(ref() is not None for ref in alive))
        return value

    monkeypatch.setattr(OnDisk, "_read", noted)
    model = zoo.load(source.folder, device="meta")
    zoo.export(model, tmp_path / "out", values=on_disk(source.folder))
    assert most <= KEPT + 2 and len(alive) == len(model.state_dict()), "each is read once"
    again, expected = zoo.load(tmp_path / "out").state_dict(), zoo.load(source.folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_a_head_that_should_repeat_the_embedding_is_still_compared(write: Any, tmp_path: Path) -> None:
    source = write(dense=True, tie_word_embeddings=True)
    source.tensors["lm_head.weight"] = source.tensors["model.embed_tokens.weight"] + 1
    source.write()
    with pytest.raises(WeightsError, match=r"lm_head\.weight differs"):
        zoo.save(zoo.load(source.folder, device="meta"), tmp_path / "out", values=on_disk(source.folder))
    assert not (tmp_path / "out").exists()


def test_files_are_those_of_the_format_s_own_library(tmp_path: Path) -> None:
    state = {
        "b": torch.randn(3, 5), "a": torch.arange(4), "c": torch.randn(2, 3).to(torch.bfloat16), "d": torch.tensor(2.5),
        "e": torch.tensor([True, False]), "empty": torch.zeros(0, 3),
    }  # fmt: skip
    save_file(state, tmp_path / "expected", metadata={"format": "pt"})
    files.write_tensors(tmp_path, state, lambda name: state[name], None)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()
