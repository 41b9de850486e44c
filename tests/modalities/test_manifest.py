from __future__ import annotations

import json
from pathlib import Path

import pytest

from modalities.manifest import read_rows


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_gives_its_files_in_order_with_the_subfolder_as_label(tmp_path: Path) -> None:
    for name in ("b.txt", "cat/a.TXT", "cat/deep/c.txt", "note.md"):
        write(tmp_path / name, "x")
    rows = read_rows(tmp_path, "text", (".txt",))
    assert [(Path(str(r["text"])).name, r.get("label")) for r in rows] == [
        ("b.txt", None),
        ("a.TXT", "cat"),
        ("c.txt", "cat/deep"),
    ]


def test_one_file_is_one_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "x")
    assert read_rows(file, "text", (".txt",)) == [{"text": file}]


def test_csv_and_jsonl_give_the_same_rows(tmp_path: Path) -> None:
    table = write(tmp_path / "m.csv", '\ufefftext,label\n"a, b",1\n"two\nlines",2\n')
    lines = write(tmp_path / "m.jsonl", "\n".join(json.dumps(r) for r in ({"text": "a, b", "label": "1"},)) + "\n\n")
    assert read_rows(table, "text", ()) == [{"text": "a, b", "label": "1"}, {"text": "two\nlines", "label": "2"}]
    assert read_rows(lines, "text", ()) == [{"text": "a, b", "label": "1"}]


def test_a_line_separator_inside_json_does_not_end_the_row(tmp_path: Path) -> None:
    lines = write(tmp_path / "m.jsonl", json.dumps({"text": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert read_rows(lines, "text", ()) == [{"text": "a\u2028b"}]


def test_named_files_are_found_beside_the_manifest(tmp_path: Path) -> None:
    sound = write(tmp_path / "wav" / "a.wav", "x")
    rows = read_rows(write(tmp_path / "m.csv", "audio,text\nwav/a.wav,hi\n"), "audio", (), files=("audio",))
    assert rows == [{"audio": sound, "text": "hi"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "texts\nx\n", r"m\.csv, row 1: no column 'text'; it has \['texts'\] \(did you mean 'texts'\?\)"),
        ("m.jsonl", '{"text": "x"}\n{"label": 1}\n', r"m\.jsonl, row 2: no column 'text'; it has \['label'\]"),
        ("m.csv", "text,label\nx,1\n,2\n", r"m\.csv, row 2: column 'text' is empty; fill it"),
        ("m.csv", "text\na,b\n", r"m\.csv, row 1: more cells than the header"),
        ("m.csv", "text\n", r"m\.csv: the manifest has no rows"),
        ("m.jsonl", '{"text": "x"}\n{oops\n', r"m\.jsonl, row 2: not JSON"),
        ("m.jsonl", "[1]\n", r"m\.jsonl, row 1: expected an object with columns, got list"),
        ("m.xml", "<a/>", r"m\.xml: a manifest ends in \.jsonl or \.csv, got '\.xml'"),
    ],
)
def test_a_bad_manifest_names_the_row(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rows(write(tmp_path / name, text), "text", ())


def test_a_needed_column_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1: no column 'label'"):
        read_rows(write(tmp_path / "m.csv", "image\na.png\n"), "image", (), needs=("label",))


def test_a_missing_file_names_the_row_and_the_column(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.csv", "audio\ngone.wav\n")
    with pytest.raises(FileNotFoundError, match=r"row 1: column 'audio' names .*gone\.wav, which does not exist"):
        read_rows(manifest, "audio", (), files=("audio",))


def test_missing_and_empty_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        read_rows(tmp_path / "nowhere", "text", (".txt",))
    with pytest.raises(FileNotFoundError, match=r"no file with suffix \.txt"):
        read_rows(tmp_path, "text", (".txt",))


def test_a_manifest_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("text\nä\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"m\.csv: not UTF-8 at byte 5; convert"):
        read_rows(tmp_path / "m.csv", "text", ())
