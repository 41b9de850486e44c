"""Splits of the spoken sets, own files, and what is said about bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from modalities.roots import find
from modalities.speech.data import WORDS, FSDDSpec, SpeechFilesSpec, SpokenDigitsSpec

TONE = (0.2 * np.sin(np.arange(4000) / 3)).astype(np.float32)


def test_embedded_pack() -> None:
    train, test = SpokenDigitsSpec().build("train"), SpokenDigitsSpec().build("test")
    assert (len(train), len(test)) == (600, 120)
    for part in (train, test):
        assert {raw["text"] for raw in part} == set(WORDS)
    assert len({raw["speaker"] for raw in train}) == 5 and {raw["speaker"] for raw in test} == {"en-gb-x-rp+f4"}
    raw = test[-1]
    assert raw["rate"] == 8000 and raw["audio"].dtype == np.float32 and 0.1 < len(raw["audio"]) / 8000 < 1.2
    assert 0.05 < float(np.sqrt(np.mean(raw["audio"] ** 2))) < 0.15
    assert len(test[:3]) == 3
    with pytest.raises(IndexError):
        test[120]


def test_fsdd_splits() -> None:
    if find("fsdd/recordings") is None:
        pytest.skip("needs fsdd under ZOO_DATA")
    train, test = FSDDSpec().build("train"), FSDDSpec().build("test")
    assert (len(train), len(test)) == (2250, 250)
    takes = {int(Path(test[i]["source"]).stem.split("_")[2]) for i in range(len(test))}
    assert takes == {0, 1, 2, 3, 4}
    assert test[0]["text"] == "zero" and test[0]["speaker"] == "george" and test[0]["rate"] == 8000
    with pytest.raises(ValueError, match=r"speakers: got \['ann'\], found \['george'"):
        FSDDSpec(speakers=("ann",)).build("test")


def test_a_missing_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert not FSDDSpec().available()
    with pytest.raises(FileNotFoundError, match=r"ZOO_DATA.*modalities\.speech\.data\.download"):
        FSDDSpec().build("train")


def test_own_manifest(tmp_path: Path) -> None:
    rows = []
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.wav", np.stack([TONE, TONE], axis=1), 16000)
        rows.append({"audio": f"{i}.wav", "text": f"word {i}", "speaker": "ann"})
    manifest = tmp_path / "own.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    spec = SpeechFilesSpec(path=str(manifest), test=0.2)
    train, test = spec.build("train"), spec.build("test")
    assert (len(train), len(test)) == (8, 2)
    assert {r["text"] for r in train} | {r["text"] for r in test} == {f"word {i}" for i in range(10)}
    assert train[0]["audio"].shape == (2000,) and train[0]["speaker"] == "ann"


def test_own_folder_is_labelled_by_its_subfolders(tmp_path: Path) -> None:
    for word in ("yes", "no"):
        (tmp_path / word).mkdir()
        for i in range(3):
            soundfile.write(tmp_path / word / f"{i}.flac", TONE, 8000)
    spec = SpeechFilesSpec(path=str(tmp_path), test=0.3)
    texts = [r["text"] for part in ("train", "test") for r in spec.build(part)]
    assert sorted(texts) == ["no"] * 3 + ["yes"] * 3
    soundfile.write(tmp_path / "loose.wav", TONE, 8000)
    with pytest.raises(ValueError, match=r"loose\.wav: no text"):
        spec.build("train")


def test_bad_manifests_name_the_row(tmp_path: Path) -> None:
    manifest = tmp_path / "own.csv"
    manifest.write_text("audio,txt\na.wav,one\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"row 1: no column 'text'.*did you mean 'txt'"):
        SpeechFilesSpec(path=str(manifest)).build("train")
    manifest.write_text("audio,text\na.wav,one\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"row 1: column 'audio' names .*a\.wav"):
        SpeechFilesSpec(path=str(manifest)).build("train")
    soundfile.write(tmp_path / "a.wav", np.tile(TONE, 20), 8000)
    with pytest.raises(ValueError, match=r"a\.wav: lasts 10\.00 s, expected at most 4 s"):
        SpeechFilesSpec(path=str(manifest)).build("train")[0]
