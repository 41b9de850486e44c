"""`zoo trace`: the table, the files, layers inside attention, and what cannot be traced."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.commands.tracing import FILES

TEXT = "To be, or not to be. " * 20


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_the_table_and_the_files(run: Any, refused: Any, saved: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "traced"
    status, printed, _ = run("trace", saved, "--text", text, "--out", out)
    assert status == 0 and "text: share of slots per expert, %" in printed and "n0" in printed
    assert all(line.endswith("|   2.00") for line in printed.splitlines()[2:4])
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert (out / "load.png").stat().st_size > 1000
    with (out / "routing.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * 2 * (420 + 1), "layers x slots x (bytes and the end)"
    numbers = (out / "load.csv").read_text(encoding="utf-8").splitlines()
    assert numbers[0] == "modality,layer,expert,null,slots,share" and len(numbers) == 1 + 2 * 5
    for name in FILES:
        assert f"{name}: already exists" in refused("trace", saved, "--text", text, "--out", out)
        (out / name).unlink()
    assert run("trace", saved, "--text", text, "--out", out, "--overwrite")[0] == 0


def test_rows_bound_what_is_read(run: Any, saved: Path, text: Path, tmp_path: Path) -> None:
    assert run("trace", saved, "--text", text, "--out", tmp_path / "one", "--rows", 1)[0] == 0
    lines = (tmp_path / "one/routing.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 2 * 2 * 32, "layers x slots x one row of 32"


def test_layers_inside_attention(run: Any, text: Path, tmp_path: Path, plain_text: Any) -> None:
    folder = zoo.save(zoo.create(plain_text, seed=0), tmp_path / "jet")
    status, printed, _ = run("trace", folder, "--text", text, "--rows", 1)
    places = [line.split(")")[0] for line in printed.splitlines()[2:]]
    assert status == 0 and [p.split("(")[0].strip() for p in places] == ["0", "1", "2", "3"]
    assert places[0].endswith("(0.attention") and places[1].endswith("(0.ffn")


@pytest.fixture
def plain_text() -> dict[str, Any]:
    """A model with experts in its attention too."""
    ffn = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": {"type": "top_k", "k": 2}}
    attention = {"heads": 2, "head_dim": 8, "routed": 4, "router": {"type": "top_k", "k": 2}}
    block = {"type": "attention_experts", "attention": attention, "ffn": ffn}
    return {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {"text": {"type": "text", "length": 32}},
    }


def test_what_cannot_be_traced(refused: Any, make: Any, saved: Path, text: Path, tmp_path: Path) -> None:
    dense = make(dense=True)
    assert refused("trace", dense, "--text", text) == (
        f"{dense}: a dense model; no block has experts, so there is no routing to trace"
    )
    assert "--rows: got 0, expected 1 or more" in refused("trace", saved, "--text", text, "--rows", 0)
    assert "is a file, expected a folder" in refused("trace", saved, "--text", text, "--out", text)
    assert "no tokenizer" in refused("trace", make("routed"), "--text", text)
    text.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8 text" in refused("trace", saved, "--text", text)
    text.write_bytes(b"")
    assert "is empty" in refused("trace", saved, "--text", text)
    assert "No such file" in refused("trace", saved, "--text", tmp_path / "gone.txt")
