from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modalities.roots import find
from modalities.time_series.data import ETTH1, ElNinoSpec, ETTh1Spec, SeriesFilesSpec, channel


def test_channels_are_scaled_by_their_training_part_and_keep_their_past() -> None:
    values = np.arange(10.0)
    train, validation, test = (channel(values, (4, 6, 9), s, name="x") for s in ("train", "validation", "test"))
    assert train["series"].mean() == pytest.approx(0, abs=1e-6) and train["series"].std() == pytest.approx(1)
    assert [len(r["series"]) for r in (train, validation, test)] == [4, 6, 9]
    assert "start" not in train and (validation["start"], test["start"]) == (4, 6)
    assert np.allclose(test["series"] * test["std"] + test["mean"], values[:9], atol=1e-5)


@pytest.mark.skipif(find(ETTH1) is None, reason="ETTh1 is not below ZOO_DATA")
def test_etth1_has_the_usual_borders() -> None:
    train, test = (ETTh1Spec().build(s) for s in ("train", "test"))
    assert len(train) == len(test) == 7
    assert {len(r["series"]) for r in train} == {8640} and {len(r["series"]) for r in test} == {14400}
    assert {r["start"] for r in test} == {11520} and {r["start"] for r in ETTh1Spec().build("validation")} == {8640}
    assert np.allclose([r["series"].mean() for r in train], 0, atol=1e-4)
    assert test[-1]["name"] == "oil temperature" and test[-1]["unit"] == "°C"
    assert test[-1]["series"][0] * test[-1]["std"] + test[-1]["mean"] == pytest.approx(30.531, abs=1e-3)


def test_a_missing_set_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert not ETTh1Spec().available()
    with pytest.raises(FileNotFoundError, match=r"call modalities\.time_series\.data\.download\(\)"):
        ETTh1Spec().build("test")


def test_the_embedded_series_needs_nothing() -> None:
    spec = ElNinoSpec()
    assert spec.available()
    train, test = spec.build("train"), spec.build("test")
    assert len(train) == 4 and {len(r["series"]) for r in test} == {732}
    assert len(test[0]["series"]) - test[0]["start"] >= 96
    first = train[0]["series"][0] * train[0]["std"] + train[0]["mean"]
    assert first == pytest.approx(23.11, abs=1e-3) and train[0]["period"] == 12


def test_own_columns_of_numbers_are_series(tmp_path: Path) -> None:
    rows = "\n".join(f"2020-01-{i:02d},{i},{i * 2.5}" for i in range(1, 21))
    (tmp_path / "a.csv").write_text(f"date,x,y\n{rows}\n", encoding="utf-8")
    spec = SeriesFilesSpec(path=str(tmp_path / "a.csv"), period=7, step="days")
    test = spec.build("test")
    assert [r["name"] for r in test] == ["x", "y"] and test[0]["start"] == 16 and test[0]["period"] == 7
    assert np.allclose(test[1]["series"] * test[1]["std"] + test[1]["mean"], np.arange(1, 21) * 2.5, atol=1e-4)
    assert len(spec.build("train")[0]["series"]) == 14


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"series": [1, 2, 3, 4, 5, 6]}\n{"series": [6, 5, 4, 3, 2, 1], "name": "down"}\n'),
        ("a.csv", 'name,series\n,1 2 3 4 5 6\ndown,"[6, 5, 4, 3, 2, 1]"\n'),
    ],
)
def test_own_lists_of_numbers_are_series(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    for path in (tmp_path / name, tmp_path):
        up, down = SeriesFilesSpec(path=str(path)).build("test")
        assert up["name"].endswith("row 1") and down["name"] == "down"
        assert np.allclose(down["series"] * down["std"] + down["mean"], [6, 5, 4, 3, 2, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "date,x\nd,1\nd,\n", r"a\.csv, row 2, column 'x': got '', expected a number; fill or cut the gap"),
        ("a.csv", "date,x\nd,1\nd\n", r"a\.csv, row 2, column 'x': got None, expected a number"),
        ("a.csv", "date,x\nd,\nd,2\n", r"a\.csv, row 1, column 'x': got '', expected a number"),
        ("a.csv", "date\nd\n", r"a\.csv: no column of numbers; it has \['date'\]"),
        ("a.csv", "x\n1\nnan\n3\n4\n", "a.csv, series 'x': value at index 1 is nan"),
        ("a.csv", "x\n1\n2\n", "a.csv, series 'x': got 2 values, expected at least 4"),
        ("a.csv", "x\n", r"a\.csv: no rows"),
        ("a.csv", "series\n[1 two]\n", r"a\.csv, row 1, value 1: got 'two', expected a number"),
        ("a.jsonl", '{"values": [1]}\n', r"a\.jsonl, row 1: no column 'series'; it has \['values'\]"),
        ("a.jsonl", '{"series": 4}\n', r"a\.jsonl, row 1: column 'series' is int, expected numbers"),
        ("a.jsonl", '{"series": [1, null, 2]}\n', r"row 1, value 1: got None, expected a number"),
    ],
)
def test_bad_own_series_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        SeriesFilesSpec(path=str(tmp_path / name)).build("train")


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"test: got 0\.9"):
        SeriesFilesSpec(path="x", test=0.9)
    with pytest.raises(ValueError, match="period: got 0"):
        SeriesFilesSpec(path="x", period=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n" + b"1\n" * 40, r"s\.csv, series 'a': is constant in its training part \(1\); leave it out"),
        (b"\xff\xfea\n1\n", r"s\.csv: not UTF-8 at byte 0"),
    ],
)
def test_files_that_teach_nothing_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        SeriesFilesSpec(path=str(tmp_path / "s.csv")).build("train")
