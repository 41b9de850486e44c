"""The benchmark of null experts runs, and its figures stand for the rows that were counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import null_experts


def test_gains_stand_beside_the_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = null_experts.run(["--quick", "--taus", "0.75", "--json", str(tmp_path / "found.json")])
    assert [(section["tokens"], section["work"]) for section in found["sections"]] == [(60, "forward"), (60, "train")]
    vanilla, own = found["sections"][0]["rows"]
    assert (vanilla["name"], vanilla["found"], vanilla["products"]) == ("vanilla", 1.0, 1.0)
    assert own["promised"] == sum(vanilla["rows"]) / sum(own["rows"]) == pytest.approx(1 / 0.6, rel=0.03)
    assert own["found"] > 0 and own["products"] > 0
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["benchmark"] == "null_experts"
    assert "| tau 0.75 |" in capsys.readouterr().out
