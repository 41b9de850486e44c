"""Saving and loading: bit-equal, atomic, and refused with every reason at once."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from modalities.text.tokenizer_files import TEXT_FILES
from zoo.hub.card import CardFields, Result
from zoo.hub.entries import EntryError
from zoo.hub.tensors import WeightsError
from zoo.hub.weights import prefetch
from zoo.models.unified import Unified
from zoo.spec import SpecError, dump


def everything(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, those that are not saved included."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def assert_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    first, second = everything(a), everything(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_saved_model_is_loaded_bit_by_bit(model: Unified, saved: Path) -> None:
    before = torch.get_rng_state()
    loaded = zoo.load(saved)
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(model, loaded)
    assert loaded.spec == model.spec and not loaded.training
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(ids).logits, loaded(ids).logits)


def test_every_modality_survives(tmp_path: Path) -> None:
    model = zoo.create("unimoe-tiny", **{"backbone.dim": 32, "backbone.cond": 32})
    rng = np.random.default_rng(0)
    raws = [
        {"audio": rng.standard_normal(8000).astype(np.float32) * 0.1, "rate": 8000, "text": "one", "speaker": "ann"}
        for _ in range(40)
    ]
    speech: Any = model.modalities["speech"]
    speech.fit(raws)
    loaded = zoo.load(zoo.save(model, tmp_path / "m"))
    assert_equal(model, loaded)
    assert loaded.modalities["speech"].voices.known() == ["ann"]
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    assert trained == {name: p.requires_grad for name, p in loaded.named_parameters()}


def test_what_is_written(saved: Path) -> None:
    assert sorted(files(saved)) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert config["format"] == "moezoo" and config["spec"]["backbone"]["dim"] == 16
    readme = (saved / "README.md").read_text(encoding="utf-8")
    assert "library_name: moezoo" in readme and "license:" not in readme, "no licence is claimed that was not chosen"
    modes = {oct(p.stat().st_mode & 0o777) for p in saved.iterdir()}
    assert len(modes) == 1, "all files are readable by the same people"


def test_the_card_is_kept(model: Unified, tmp_path: Path) -> None:
    fields = CardFields(system="a test", results=(Result(name="bits", value=1.25, baseline=2.0, unit="bits/byte"),))
    folder = zoo.save(model, tmp_path / "m", card=fields)
    assert zoo.card(folder).fields == fields
    assert "| bits | 1.25 | 2 | bits/byte |" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("limit", [1, 3000, 10**9])
def test_shards(model: Unified, tmp_path: Path, limit: int) -> None:
    folder = zoo.save(model, tmp_path / "m", max_shard_size=limit)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert bool(shards) == (limit < 10**9) == (folder / "model.safetensors.index.json").exists()
    if limit == 3000:
        multiple = [s for s in shards if len(load_file(s)) > 1]
        assert multiple and all(sum(t.nbytes for t in load_file(s).values()) <= limit for s in multiple)
    assert_equal(model, zoo.load(folder))


def test_another_precision_leaves_routers_alone(model: Unified, saved: Path) -> None:
    loaded = zoo.load(saved, dtype=torch.bfloat16)
    router = loaded.moe_layers()[0].router
    assert loaded.modalities["text"].embedding.weight.dtype == torch.bfloat16
    assert (
        torch.equal(router.gate.weight, model.moe_layers()[0].router.gate.weight)
        and router.gate.weight.dtype == torch.float32
    )
    assert loaded(torch.tensor([[256, 65]])).logits.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"dtype: got torch.int8, expected a floating-point type"):
        zoo.load(saved, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"dtype: got 'bfloat16', expected .* such as torch.bfloat16"):
        zoo.load(saved, dtype="bfloat16")  # type: ignore[arg-type]


def test_a_compiled_model_is_saved_under_its_own_names(model: Unified, tmp_path: Path) -> None:
    compiled = torch.compile(model, backend="eager")
    assert_equal(model, zoo.load(zoo.save(compiled, tmp_path / "m")))  # type: ignore[arg-type]
    part = copy.deepcopy(model)
    part.backbone = torch.compile(part.backbone, backend="eager")  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"model: backbone was replaced by torch.compile; expected .compile\(\) of it"):
        zoo.save(part, tmp_path / "part")
    with pytest.raises(TypeError, match=r"model: got a Linear, expected one of zoo.create or zoo.load itself"):
        zoo.save(torch.nn.Linear(2, 2), tmp_path / "linear")


def test_a_half_precision_file_stays_half(model: Unified, tmp_path: Path) -> None:
    half = zoo.create(dict(dump(model.spec))).to(torch.bfloat16)
    loaded = zoo.load(zoo.save(half, tmp_path / "m"))
    assert loaded.modalities["text"].embedding.weight.dtype == torch.bfloat16


def test_an_existing_folder_is_kept(model: Unified, tmp_path: Path) -> None:
    folder = zoo.save(model, tmp_path / "m")
    before = files(folder)
    with pytest.raises(FileExistsError, match=r"m: already exists.*--overwrite"):
        zoo.save(model, folder)
    assert files(folder) == before
    other = zoo.create(dict(dump(model.spec)), seed=9)
    zoo.save(other, folder, overwrite=True, max_shard_size=3000)
    assert not (folder / "model.safetensors").exists()
    assert_equal(other, zoo.load(folder))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_empty_folder_is_filled(model: Unified, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert_equal(model, zoo.load(zoo.save(model, tmp_path / "m")))


def test_overwriting_never_deletes_what_is_not_a_model(model: Unified, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is no saved model"):
        zoo.save(model, tmp_path / "home", overwrite=True)
    folder = zoo.save(model, tmp_path / "m")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"also holds notes\.txt"):
        zoo.save(model, folder, overwrite=True)
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the write fails half way, inside the safetensors library."""
    code = f"""
import resource, zoo
plain = {{"type": "unified", "modalities": {{"text": {{"type": "text"}}}}, "backbone": {{"dim": 32, "layers": [
    {{"block": {{"type": "sequential", "attention": {{"heads": 1}}, "ffn": {{"type": "dense", "hidden": 4}}}}}}]}}}}
zoo.save(zoo.create(plain), {str(tmp_path / "m")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    zoo.save(zoo.create(plain, seed=1), {str(tmp_path / "m")!r}, overwrite=True)
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "model.safetensors: could not be written, what was there before is unchanged" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    plain = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))["spec"]
    assert_equal(zoo.create(plain, seed=0), zoo.load(tmp_path / "m"))


@pytest.mark.parametrize("step", ["config", "tensors", "rename"])
def test_a_full_disk_leaves_the_previous_model(
    model: Unified, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = zoo.save(model, tmp_path / "m")
    before = files(folder)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    target = {
        "config": "zoo.hub.config.write",
        "tensors": "zoo.hub.files.write_tensors",
        "rename": "zoo.hub.folder._swap",
    }
    monkeypatch.setattr(target[step], full)
    with pytest.raises(OSError, match="No space left"):
        zoo.save(model, folder, overwrite=True)
    assert files(folder) == before and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_kill_leaves_the_previous_model(tmp_path: Path) -> None:
    """The process dies, as by SIGKILL, after the tensors are written and before the folder is put in its place."""
    code = f"""
import os, zoo, zoo.hub.folder as f
plain = {{"type": "unified", "modalities": {{"text": {{"type": "text"}}}}, "backbone": {{"dim": 4, "layers": [
    {{"block": {{"type": "sequential", "attention": {{"heads": 1}}, "ffn": {{"type": "dense", "hidden": 4}}}}}}]}}}}
zoo.save(zoo.create(plain), {str(tmp_path / "m")!r})
f._flush = lambda path: os._exit(9) if path.name.endswith(".part") else None
zoo.save(zoo.create(plain, seed=1), {str(tmp_path / "m")!r}, overwrite=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 9, done.stderr
    plain = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))["spec"]
    assert_equal(zoo.create(plain, seed=0), zoo.load(tmp_path / "m"))


def test_where_names_cannot_be_exchanged_two_renames_do(
    model: Unified, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.hub.folder._exchange", lambda a, b: False)
    folder = zoo.save(model, tmp_path / "m")
    other = zoo.create(dict(dump(model.spec)), seed=4)
    zoo.save(other, folder, overwrite=True)
    assert_equal(other, zoo.load(folder))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_missing_surplus_and_misshapen_tensors_are_all_listed(model: Unified, tmp_path: Path) -> None:
    folder = zoo.save(model, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    del state["backbone.norm.weight"]
    state["backbone.extra"] = torch.zeros(2, 3)
    state["backbone.blocks.0.attention.q.weight"] = torch.zeros(5, 16)
    state["modalities.text.embedding.weight"] = state["modalities.text.embedding.weight"].long()
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        zoo.load(folder)
    text = str(caught.value)
    assert "4 tensors do not fit" in text
    assert "missing backbone.norm.weight [16] float32" in text
    assert "surplus backbone.extra [2, 3] float32" in text
    assert "misshapen backbone.blocks.0.attention.q.weight: [5, 16] float32, expected [16, 16] float32" in text
    assert "misshapen modalities.text.embedding.weight: [259, 16] int64, expected [259, 16] float32" in text


@pytest.mark.parametrize(
    ("ref", "error", "message"),
    [
        ("unimoe-tniy", EntryError, r"did you mean 'unimoe-tiny'"),
        ("some-org/some-name", FileNotFoundError, r"for the Hugging Face hub write 'hf:some-org/some-name'"),
        ("./nowhere", FileNotFoundError, r"nowhere: no such folder$"),
        ("hf:name", EntryError, r"expected hf:organisation/name"),
        ("unimoe-tiny", EntryError, r"has no weights; zoo.create\('unimoe-tiny'\)"),
    ],
)
def test_a_reference_that_leads_nowhere(ref: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        zoo.load(ref)


def test_a_bare_folder_name_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    assert zoo.load("small").spec.backbone.dim == 16
    with pytest.raises(FileNotFoundError, match="is a file; expected a saved model's folder"):
        zoo.load("small/README.md")


def test_an_entry_may_ship_its_weights(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    shutil.copytree(saved, tmp_path / "shipped")
    (tmp_path / "here.yaml").write_text("spec: {}\nweights: shipped\n", encoding="utf-8")
    monkeypatch.setattr("zoo.hub.entries.folder", lambda: tmp_path)
    assert_equal(zoo.load("here"), zoo.load(saved))


def test_the_hub_is_asked_for_these_files_only(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert zoo.load("hf:org/name@v1").spec.backbone.dim == 16
    assert prefetch("hf:org/name@v1") == saved and asked.pop() == asked[0]
    weights = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
    assert asked == [("org/name", "v1", [*weights, *TEXT_FILES])]
    assert not any(name.endswith((".py", ".bin")) or "*" in name for name in TEXT_FILES)


def test_offline_the_hub_is_not_asked(tmp_path: Path) -> None:
    code = "import zoo\ntry:\n    zoo.load('hf:org/name')\nexcept FileNotFoundError as e:\n    print(e)"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=100)
    assert "hf:org/name: not in the local cache" in done.stdout, done.stderr


def test_a_foreign_config_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        zoo.load(tmp_path)
    for content, message in [
        (
            {"model_type": "mixtrel"},
            r"model_type: 'mixtrel' is not supported \(did you mean 'mixtral'\?\); supported are ",
        ),
        ({"hello": 1}, "a config with the keys hello"),
        ({"format": "moezoo", "version": 9, "spec": {}}, "layout version 9"),
        ({"format": "moezoo", "version": 1, "spec": {}, "sepc": {}}, "unknown key 'sepc'"),
        ({"format": "moezoo", "version": 1}, "'spec' is missing"),
        ([], "expected a mapping at the top"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(SpecError, match=message):
            zoo.load(tmp_path)


def test_a_loaded_model_does_not_write_to_its_file(model: Unified, tmp_path: Path) -> None:
    folder = zoo.save(model, tmp_path / "m")
    before = files(folder)
    loaded = zoo.load(folder)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert files(folder) == before
    zoo.save(model, folder, overwrite=True)
    assert not torch.equal(loaded.backbone.norm.weight, model.backbone.norm.weight)
