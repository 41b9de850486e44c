"""Chorales, embedded tunes, own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modalities.codecs.files import write_wav
from modalities.codecs.spec import LogMelRVQSpec
from modalities.music.codec import CodecMusic
from modalities.music.data import CHORALES, ChoralesSpec, MusicFilesSpec, NoteFilesSpec, TunesSpec
from modalities.music.harmonise import harmonise
from modalities.music.score import REST, check_notes
from modalities.music.spec import CodecMusicSpec
from modalities.music.synth import synthesise
from modalities.music.tunes import melodies, read_melody
from modalities.roots import find

CHORD = [72, 67, 64, 48]


@pytest.mark.skipif(find(CHORALES) is None, reason=f"{CHORALES} is not below ZOO_DATA")
def test_chorales_have_the_splits_of_the_set() -> None:
    train, test = ChoralesSpec().build("train"), ChoralesSpec().build("test")
    assert (len(train), len(test)) == (229, 76)
    assert sum(len(raw["notes"]) for raw in test) == 18_408
    assert train[0]["notes"][0].tolist() == [74, 70, 65, 58]


def test_a_missing_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert not ChoralesSpec().available()
    with pytest.raises(FileNotFoundError, match=r"set ZOO_DATA .* or call modalities\.music\.data\.download\(\)"):
        ChoralesSpec().build("train")


def test_short_steps_of_the_set_end_in_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    (tmp_path / "jsb").mkdir()
    (tmp_path / CHORALES).write_text(json.dumps({"train": [[[60.0, 55], [], CHORD]], "valid": []}))
    assert ChoralesSpec().build("train")[0]["notes"].tolist() == [[60, 55, 0, 0], [0] * 4, CHORD]


def test_the_melody_notation() -> None:
    assert read_melody("C4/2 D# r/1 Bb3 A") == [60, 60, 63, 63, 0, 58, 57]
    with pytest.raises(ValueError, match="note 'H4'"):
        read_melody("C4 H4")


def test_tunes_are_twenty_scores_split_by_tune() -> None:
    train, test = TunesSpec().build("train"), TunesSpec().build("test")
    assert (len(train), len(test)) == (16, 4)
    assert not {t["notes"].tobytes() for t in train} & {t["notes"].tobytes() for t in test}
    assert len({name for name, *_ in melodies()}) == 20
    for raw in [*train, *test]:
        notes = check_notes(raw["notes"])
        sounding = notes[(notes != REST).all(axis=1)]
        assert len(notes) >= 100 and (np.diff(sounding[:, :3]) < 0).all()
        assert notes[notes != REST].min() >= 41 and notes.max() <= 81


def test_harmony_covers_the_melody_and_ends_on_the_tonic() -> None:
    notes = harmonise([67] * 8 + [71] * 8 + [0] * 4 + [67] * 4, "G")
    assert notes[0].tolist() == [67, 62, 59, 43]  # the tonic triad, G in the bass
    assert not notes[16:20].any()
    assert notes[-1, 3] % 12 == 7
    assert harmonise([69] * 16, "a")[0].tolist() == [69, 64, 60, 45]


def own_files(folder: Path, count: int) -> None:
    for i in range(count):
        (folder / f"{i}.json").write_text(json.dumps([[60 + i, 55, 52, 40]] * 4))


def test_a_folder_is_split_by_content(tmp_path: Path) -> None:
    own_files(tmp_path, 10)
    spec = NoteFilesSpec(path=str(tmp_path), test=0.2)
    train, test = spec.build("train"), spec.build("test")
    assert (len(train), len(test)) == (8, 2)
    assert {int(r["notes"][0, 0]) for r in [*train, *test]} == set(range(60, 70))


def test_one_piece_is_split_in_time(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps([CHORD] * 20))
    spec = NoteFilesSpec(path=str(tmp_path / "one.json"))
    assert [len(spec.build(split)[0]["notes"]) for split in ("train", "test")] == [18, 2]
    (tmp_path / "one.json").write_text(json.dumps([CHORD]))
    with pytest.raises(ValueError, match="a single piece of one step"):
        spec.build("train")


def test_a_manifest_names_files_or_holds_the_steps(tmp_path: Path) -> None:
    own_files(tmp_path, 1)
    manifest = tmp_path / "all.jsonl"
    manifest.write_text(json.dumps({"score": "0.json"}) + "\n" + json.dumps({"score": [CHORD]}) + "\n")
    spec = NoteFilesSpec(path=str(manifest), column="score")
    assert len(spec.build("train")) == len(spec.build("test")) == 1
    manifest.write_text(json.dumps({"score": "gone.json"}) + "\n")
    with pytest.raises(FileNotFoundError, match=r"all\.jsonl, row 1: .* does not exist"):
        spec.build("train")
    manifest.write_text(json.dumps({"score": [CHORD]}) + "\n" + json.dumps({"score": [[60, 200, 1, 1]]}) + "\n")
    with pytest.raises(ValueError, match=r"all\.jsonl, row 2: pitch 200 at step 0, voice 1"):
        spec.build("train")
    with pytest.raises(ValueError, match=r"no column 'notes'.*"):
        NoteFilesSpec(path=str(manifest)).build("train")


def recordings(folder: Path, count: int) -> None:
    for i in range(count):
        write_wav(folder / f"piece {i}.wav", synthesise([CHORD] * 4 + [[60 + i, 55, 52, 40]] * 4, rate=8000), 8000)


def test_recordings_of_a_folder_or_a_manifest_with_and_without_captions(tmp_path: Path) -> None:
    recordings(tmp_path / "music" / "a waltz", 4)
    recordings(tmp_path / "music", 1)
    train, test = (MusicFilesSpec(path=str(tmp_path / "music"), rate=8000).build(s) for s in ("train", "test"))
    assert (len(train), len(test)) == (4, 1)
    assert sorted(raw["text"] for raw in [*train, *test]) == [""] + ["a waltz"] * 4
    assert not {raw["source"] for raw in train} & {raw["source"] for raw in test}
    manifest = tmp_path / "all.csv"
    manifest.write_text("audio,text\nmusic/piece 0.wav,a march\nmusic/a waltz/piece 1.wav,\n")
    rows = [row for split in ("train", "test") for row in MusicFilesSpec(path=str(manifest)).build(split)]
    assert {raw["text"] for raw in rows} == {"a march", ""}
    assert all(raw["rate"] == 16000 and raw["audio"].dtype == np.float32 for raw in rows)


def test_recordings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    recordings(tmp_path, 2)
    with pytest.raises(ValueError, match=r"piece \d\.wav: lasts .* expected at most 0\.5 s"):
        MusicFilesSpec(path=str(tmp_path), seconds=0.5).build("train")[0]
    (tmp_path / "all.csv").write_text("audio,text\npiece 0.wav,a\ngone.wav,b\n")
    with pytest.raises(FileNotFoundError, match=r"all\.csv, row 2: column 'audio' names .*gone\.wav"):
        MusicFilesSpec(path=str(tmp_path / "all.csv")).build("train")
    with pytest.raises(ValueError, match=r"^seconds: got 0"):
        MusicFilesSpec(path=str(tmp_path), seconds=0)


def test_the_codec_representation_learns_from_recordings(
    tmp_path: Path, trunk: Any, train: Callable[..., list[float]]
) -> None:
    recordings(tmp_path, 5)
    raws = MusicFilesSpec(path=str(tmp_path), rate=8000).build("train")
    codec = LogMelRVQSpec(codebooks=2, size=8, iterations=2, griffin=2)
    music = CodecMusicSpec(codec=codec, length=12).build(16)
    assert isinstance(music, CodecMusic)
    music.fit(raws)
    before = music.frames.table.weight.clone()
    (loss,) = train(music, trunk, [music.example(raw) for raw in raws], 1)
    assert np.isfinite(loss) and not bool((music.frames.table.weight == before).all())
