"""`zoo convert` and `zoo prefetch`: from one format to another, and what is never written over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.commands.checkpoints import size
from zoo.hub.families import NAMES
from zoo.models.unified import Unified
from zoo.spec import dump


def test_there_and_back_gives_the_same_bytes(run: Any, make: Any, tmp_path: Path) -> None:
    source, ours, back = make(), tmp_path / "ours", tmp_path / "back"
    assert run("convert", source, ours, "--to", "zoo") == (0, f"{ours}\n", "")
    assert json.loads((ours / "config.json").read_text(encoding="utf-8"))["format"] == "moezoo"
    assert run("convert", ours, back, "--to", "hf") == (0, f"{back}\n", "")
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_precision_and_shards(run: Any, make: Any, tmp_path: Path) -> None:
    words = ["convert", make(), tmp_path / "small", "--to", "hf", "--dtype", "bfloat16", "--max-shard-size", "8KB"]
    assert run(*words)[0] == 0
    files = sorted(tmp_path.glob("small/model-*.safetensors"))
    held = {name: value for path in files for name, value in load_file(path).items()}
    assert len(files) > 1 and held["lm_head.weight"].dtype == torch.bfloat16
    gates = {value.dtype for name, value in held.items() if name.endswith("gate.weight")}
    assert gates == {torch.float32}, "routers are never narrowed"
    assert run("load-check", tmp_path / "small")[0] == 0


def test_a_dry_run_writes_nothing(run: Any, make: Any, tmp_path: Path) -> None:
    source, target = make(), tmp_path / "new"
    words = ["convert", source, target, "--dry-run", "--dtype", "bfloat16", "--max-shard-size", "8KB", "--to"]
    as_public, as_ours = run(*words, "hf")[1], run(*words, "zoo")[1]
    assert not target.exists()
    assert "mixtral (MixtralForCausalLM), 41 tensors in bfloat16, float32, " in as_public
    assert "our own format, " in as_ours and "nothing was written" in as_ours
    assert run(*(word for word in words if word != "--dry-run"), "hf")[0] == 0
    written = list(target.glob("model-*.safetensors"))
    assert f" in {len(written)} files" in as_public
    stacked = run("convert", source, tmp_path / "s", "--dry-run", "--to", "hf-stacked")[1]
    assert "in 1 file;" in stacked and "41 tensors" not in stacked


def test_a_training_checkpoint(run: Any, refused: Any, model: Unified, tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"spec": dump(model.spec)}}, tmp_path / "last.ckpt")
    assert run("convert", tmp_path / "last.ckpt", tmp_path / "m")[1].strip() == str(tmp_path / "m")
    assert zoo.load(tmp_path / "m").spec == model.spec
    assert "m: already exists" in refused("convert", tmp_path / "last.ckpt", tmp_path / "m")
    assert run("convert", tmp_path / "last.ckpt", tmp_path / "m", "--overwrite")[0] == 0
    assert "our own format" in run("convert", tmp_path / "last.ckpt", tmp_path / "n", "--dry-run")[1]
    error = refused("convert", tmp_path / "last.ckpt", tmp_path / "n", "--to", "hf")
    assert "no public family describes this model: modalities: has" in error


def test_another_family_is_refused_with_the_differences(refused: Any, make: Any, tmp_path: Path) -> None:
    words = ["convert", make(), tmp_path / "new", "--to", "hf", "--family"]
    error = refused(*words, "olmoe")
    assert error.startswith("this model is of another family; as olmoe it would differ in") and "qk_norm" in error
    assert "no 'mixtrl' (did you mean 'mixtral'?)" in refused(*words, "mixtrl")
    assert not (tmp_path / "new").exists()


def test_a_family_may_be_asked_for(run: Any, make: Any, tmp_path: Path) -> None:
    assert run("convert", make(dense=True), tmp_path / "new", "--to", "hf", "--family", "mistral")[0] == 0
    assert json.loads((tmp_path / "new/config.json").read_text(encoding="utf-8"))["model_type"] == "mistral"


def test_targets_that_are_refused(refused: Any, make: Any, tmp_path: Path) -> None:
    source = make()
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    there = tmp_path / "there"
    there.mkdir()
    (there / "note.txt").write_text("mine", encoding="utf-8")
    assert "there: already exists" in refused("convert", source, there, "--to", "hf")
    assert "is no saved model" in refused("convert", source, there, "--to", "hf", "--overwrite")
    assert "lies inside SRC" in refused("convert", source, source / "new", "--to", "zoo")
    assert "is SRC itself" in refused("convert", source, source, "--to", "zoo", "--overwrite")
    assert "SRC lies inside it" in refused("convert", source, tmp_path, "--to", "zoo", "--overwrite")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_relative_paths_and_links_are_seen_through(
    refused: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    (tmp_path / "link").symlink_to(tmp_path / "source")
    monkeypatch.chdir(tmp_path / "source")
    assert "lies inside SRC" in refused("convert", ".", "new", "--to", "zoo")
    assert "lies inside SRC" in refused("convert", "../link", "new", "--to", "zoo")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--to: missing; say hf"),
        (["--to", "gguf"], "argument --to: invalid choice: 'gguf'"),
        (["--to", "zoo", "--family", "llama"], "--family: names a public family, so it goes with --to hf"),
        (["--to", "hf", "--max-shard-size", "2XB"], "got '2XB', expected a number of bytes such as 2GB"),
        (["--to", "hf", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    ],
)
def test_options_that_are_refused(refused: Any, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in refused("convert", tmp_path / "a", tmp_path / "b", *words)


def test_sizes() -> None:
    found = [size(text) for text in ("2GB", "1.5 MiB", "10kb", "7", "1TB")]
    assert found == [2 * 10**9, 3 << 19, 10_000, 7, 10**12]


def test_prefetch(run: Any, refused: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = make()
    asked: dict[str, Any] = {}

    def fetch(name: str, **how: Any) -> str:
        asked.update(how, name=name)
        return os.fspath(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert run("prefetch", "hf:some/model@v2") == (0, f"{folder}\n", "")
    assert asked["name"] == "some/model" and asked["revision"] == "v2"
    assert "expected hf:organisation/name" in refused("prefetch", "hf:model")


def test_prefetch_offline_says_why(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(name: str, **how: Any) -> str:
        raise LocalEntryNotFoundError("outgoing traffic has been disabled\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    error = refused("prefetch", "hf:some/model")
    assert error.startswith("hf:some/model: not in the local cache") and error.endswith(
        "outgoing traffic has been disabled"
    )


def test_families_are_listed(run: Any, refused: Any) -> None:
    assert run("list", "--families")[1].split() == sorted(NAMES)
    assert run("list", "--families", "mix*")[1].split() == ["mixtral"]
    assert "--families: goes with a pattern alone" in refused("list", "--families", "--pretrained")
