from __future__ import annotations

from pathlib import Path

import pytest

from modalities.roots import find
from modalities.text.data import SHAKESPEARE, DocstringsSpec, TextFilesSpec, TinyShakespeareSpec, part, pieces
from modalities.text.docstrings import standard_library
from modalities.text.evaluate import documents


def test_pieces_join_to_the_text_again() -> None:
    text = "abcdefghij" * 3
    cut = pieces(text, 7)
    assert [len(p["text"]) for p in cut] == [7, 7, 7, 7, 2]
    assert [p["ends"] for p in cut] == [False] * 4 + [True]
    assert documents([*cut, {"text": "next"}]) == [text, "next"]


def test_the_first_nine_tenths_train() -> None:
    assert part("0123456789", "train") == "012345678" and part("0123456789", "test") == "9"


def test_docstrings_need_nothing_and_are_always_the_same() -> None:
    spec = DocstringsSpec()
    assert spec.available()
    text = standard_library()
    assert len(text) > 200_000 and "Return" in text
    train, test = documents(spec.build("train")), documents(spec.build("test"))
    assert train[0] + test[0] == text
    standard_library.cache_clear()
    assert standard_library() == text


@pytest.mark.skipif(find(SHAKESPEARE) is None, reason="tinyshakespeare is not below ZOO_DATA")
def test_tinyshakespeare_is_split_in_order() -> None:
    train, test = (documents(TinyShakespeareSpec().build(s))[0] for s in ("train", "test"))
    assert train.startswith("First Citizen:")
    assert len(train) == 9 * (len(train) + len(test)) // 10


def test_a_missing_set_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert not TinyShakespeareSpec().available()
    with pytest.raises(FileNotFoundError, match=r"set ZOO_DATA .* or call modalities\.text\.data\.download\(\)"):
        TinyShakespeareSpec().build("train")


def test_own_files_are_held_out_by_content(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"text number {i}", encoding="utf-8")
    spec = TextFilesSpec(path=str(tmp_path), test=0.2)
    train, test = ([r["text"] for r in spec.build(s)] for s in ("train", "test"))
    assert len(train) == 16 and len(test) == 4 and not set(train) & set(test)
    (tmp_path / "0.txt").rename(tmp_path / "z.txt")
    assert sorted(r["text"] for r in spec.build("test")) == sorted(test)


def test_one_own_file_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x" * 90 + "y" * 10, encoding="utf-8")
    spec = TextFilesSpec(path=str(file))
    assert documents(spec.build("train")) == ["x" * 90] and documents(spec.build("test")) == ["y" * 10]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_own_manifests_are_read(tmp_path: Path, name: str) -> None:
    rows = ["one", "two", "three"]
    body = "body\n" + "\n".join(rows) if name.endswith("csv") else "\n".join(f'{{"body": "{r}"}}' for r in rows)
    (tmp_path / name).write_text(body, encoding="utf-8")
    spec = TextFilesSpec(path=str(tmp_path / name), column="body")
    assert sorted(r["text"] for s in ("train", "test") for r in spec.build(s)) == sorted(rows)


def test_bad_own_texts_are_named(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"text": "a"}\n{"text": "  "}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"m\.jsonl, row 2: the text is empty"):
        TextFilesSpec(path=str(tmp_path / "m.jsonl")).build("train")
    (tmp_path / "m.jsonl").write_text('{"text": 4}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"row 1: column 'text' is int, expected a string"):
        TextFilesSpec(path=str(tmp_path / "m.jsonl")).build("train")
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"a\.txt: not UTF-8 at byte 2"):
        TextFilesSpec(path=str(tmp_path / "a.txt")).build("train")
    with pytest.raises(ValueError, match=r"test: got 1\.0"):
        TextFilesSpec(path="x", test=1.0)
