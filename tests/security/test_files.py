"""Files from elsewhere run no code, reach nothing outside their folder, and cannot make us allocate what they claim."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.hub.convert import convert
from zoo.hub.tensors import WeightsError, header
from zoo.spec import SpecError

PLAIN: dict[str, Any] = {
    "type": "unified",
    "backbone": {"dim": 8, "layers": [{"block": {"type": "sequential", "attention": {"heads": 1},
                                                 "ffn": {"type": "dense", "hidden": 8}}}]},
    "modalities": {"text": {"type": "text"}},
}  # fmt: skip


class Bomb:
    """What a pickle can hold: an instruction to call anything."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model to spoil."""
    return zoo.save(zoo.create(PLAIN), tmp_path / "m")


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A folder that exists once a bomb has gone off."""
    return tmp_path / "exploded"


def test_the_bomb_works(witness: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Bomb(witness), buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)  # what must never happen elsewhere
    assert witness.is_dir()


def test_a_pickle_in_place_of_weights_is_not_opened(folder: Path, witness: Path) -> None:
    for legacy in (False, True):
        torch.save({"x": Bomb(witness)}, folder / "model.safetensors", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(WeightsError, match="never opened"):
            zoo.load(folder)
    assert not witness.exists()


def test_only_safetensors_are_read(folder: Path, witness: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": Bomb(witness)}, folder / "pytorch_model.bin")
    with pytest.raises(
        WeightsError, match=r"pytorch_model\.bin only, a pickle, which can run code and is never opened"
    ):
        zoo.load(folder)
    assert not witness.exists()


@pytest.mark.parametrize("where", ["state_dict", "hyper_parameters", "beside"])
def test_a_checkpoint_with_code_is_not_opened(tmp_path: Path, witness: Path, where: str) -> None:
    content: dict[str, Any] = {"state_dict": {}, "hyper_parameters": {"spec": PLAIN}}
    if where == "beside":
        content["callbacks"] = Bomb(witness)
    else:
        content[where] = {"x": Bomb(witness)}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match=r"holds more than tensors and plain types.*so it is not opened"):
        convert(tmp_path / "last.ckpt", tmp_path / "out")
    assert not witness.exists() and not (tmp_path / "out").exists()


def test_old_and_odd_archives_are_not_opened(tmp_path: Path, witness: Path) -> None:
    torch.save({"x": Bomb(witness)}, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    with tarfile.open(tmp_path / "tar.ckpt", "w"):
        pass
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("../outside.txt", "x")
    for name in ("legacy.ckpt", "tar.ckpt", "zip.ckpt"):
        with pytest.raises(WeightsError, match=name):
            convert(tmp_path / name, tmp_path / "out")
    assert not witness.exists() and not (tmp_path.parent / "outside.txt").exists()


def forged(content: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a safetensors file \(0 bytes\)"),
        (b"\0" * 64, "not a safetensors file"),
        (forged({}, length=1 << 62), "truncated or forged"),
        (forged({}, length=99_999_999), "truncated or forged"),
        (forged(b'{"a": ' + b"[" * 100_000), "its header is corrupt"),
        (forged({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}), "truncated: "),
        (forged({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"), r"has the shape \[-1\]"),
        (forged({"a": {"dtype": "Q2", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "has dtype Q2"),
        (forged({"a": {"dtype": "F32", "shape": [1]}}), "its header is corrupt"),
        (forged({"a": 5}), "its header is corrupt"),
        (forged({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}, b"1234"), "takes 4 bytes"),
        (forged({}, b"more"), "longer than its header says"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"GGUF" + b"\0" * 60, "a GGUF file"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:24],
)
def test_forged_and_foreign_files(folder: Path, content: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        zoo.load(folder)
    assert "model.safetensors" in str(caught.value)


def test_every_truncation_is_noticed(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for size in (1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(WeightsError):
            zoo.load(folder)


def test_overlapping_offsets_are_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    entries: dict[str, Any] = {}
    largest = max(t.nbytes for t in state.values())
    for name, value in state.items():
        entries[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [0, value.nbytes]}
    (folder / "model.safetensors").write_bytes(forged(entries, b"\0" * largest))
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        zoo.load(folder)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.safetensors", "x.bin"]
)
def test_an_index_cannot_lead_out_of_its_folder(folder: Path, name: str) -> None:
    save_file(load_file(folder / "model.safetensors"), folder.parent / "secret.safetensors")
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    with pytest.raises(WeightsError, match=r"expected a \.safetensors file in the same folder"):
        zoo.load(folder)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 5}', '{"weight_map": []}', "{}", "[" * 100_000])
def test_a_broken_index_is_named(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match="not an index of shards"):
        zoo.load(folder)


def test_an_index_that_lies_about_its_shards(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(state, "model-00001-of-00001.safetensors")
    weight_map["invented"] = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match="does not agree with its shards about invented"):
        zoo.load(folder)
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no such weight file"):
        zoo.load(folder)


def spoil(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, "'auto_map' names code to run"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"spec": PLAIN | {"torch_dtype": "auto"}}, "unknown key 'torch_dtype'"),
        ({"spec": PLAIN | {"type": "os:system"}}, "no model 'os:system'"),
        ({"spec": PLAIN | {"modalities": {"text": {"type": "subprocess:Popen"}}}}, "no modality 'subprocess:Popen'"),
        ({"spec": PLAIN | {"modalities": {"../x": {"type": "text"}}}}, "is no name"),
        ({"card": {"summary": {"__class__": "x"}}}, "expected str"),
        (
            {
                "spec": PLAIN
                | {"backbone": {"dim": 8, "layers": [PLAIN["backbone"]["layers"][0] | {"repeat": 1 << 40}]}}
            },
            "repeat: got 1099511627776",
        ),
    ],
)
def test_a_config_names_registered_parts_and_known_keys_only(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    spoil(folder, **changes)
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    with pytest.raises(SpecError, match=message):
        zoo.card(folder)
        zoo.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 1 << 20},
        {"dim": 1 << 40},
        {"layers": [{"repeat": 1 << 16, "block": PLAIN["backbone"]["layers"][0]["block"]}]},
    ],
)
def test_a_config_cannot_claim_more_than_its_files_hold(folder: Path, change: dict[str, Any]) -> None:
    """Neither memory nor time is spent on it."""
    spoil(folder, spec=PLAIN | {"backbone": PLAIN["backbone"] | change})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"config\.json describes \d+ parameters, the files hold \d+"):
        zoo.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_a_yaml_entry_builds_no_python_objects(tmp_path: Path, witness: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"spec: !!python/object/apply:os.mkdir ['{witness}']\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"evil\.yaml"):
        zoo.create(path)
    assert not witness.exists()


def test_a_link_in_the_place_of_a_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(FileExistsError, match="is a file or a link"):
        zoo.save(zoo.create(PLAIN), tmp_path / "link", overwrite=True)


@pytest.mark.parametrize("length", [0x3C + 0x200, 0x280, 0x480])
def test_a_header_whose_length_looks_like_a_magic_number_is_read(tmp_path: Path, length: int) -> None:
    """0x3c is "<", 0x0280 a pickle's first bytes: safetensors files may begin with either."""
    text = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).ljust(length)
    (tmp_path / "x.safetensors").write_bytes(forged(text.encode(), b"7"))
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [55]
    assert header(tmp_path / "x.safetensors")["a"].shape == (1,)
