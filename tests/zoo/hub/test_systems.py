"""docs/systems.md is what the entries say."""

from __future__ import annotations

from pathlib import Path

import pytest

import zoo
from zoo import cli
from zoo.hub.card import Card, CardFields
from zoo.hub.claim import Claim, Found
from zoo.hub.systems import page, section

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "--all", "--markdown"]) == 0
    printed = capsys.readouterr().out
    written = (ROOT / "docs/systems.md").read_text(encoding="utf-8")
    assert printed == written, "run `make systems` and commit docs/systems.md"


def test_a_section_says_what_was_found() -> None:
    found = Found(figure=0.25, expected="at least 0.3", holds=False, note="brief", command="zoo claims a", commit="c0")
    claims = (Claim(name="x", says="a | b", found=found, check={"type": "band"}), Claim(name="y", says="said"))
    card = Card(name="a", fields=CardFields(system="s"), claims=claims, total=1000, active=10, flops=5)
    text = "\n".join(section(card))
    assert "| `x` | a \\| b | at least 0.3 | 0.25 | **does not hold** |" in text
    assert "| `y` | said |  |  | stated only |" in text and "- x: brief (`zoo claims a`, c0)" in text
    assert "| [a](#a) | s | 1 k | 10 | 5 | 0 of 1 hold |" in page([card])


def test_show_all_lists_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "--all"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}\n  system:" in printed for name in zoo.list_entries())
    assert cli.main(["show", "top2-lm", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("## top2-lm\n\n- system:")


@pytest.mark.parametrize("words", [["show"], ["show", "top2-lm", "--all"], ["show", "--schema", "--all"]])
def test_one_or_all(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert "expected" in capsys.readouterr().err
