"""Entries are found, filtered and described; a wrong one is refused with its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import zoo
from zoo.hub import entries
from zoo.hub.card import count
from zoo.hub.entries import EntryError, find_entry, plain_spec, read_entry
from zoo.spec import SpecError


@pytest.fixture
def shelf(tmp_path: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two entries in place of the packaged ones."""
    card = {
        "system": "a test",
        "summary": "One sentence.",
        "paper": {"title": "A title", "arxiv": "1234.5678", "year": 2020},
    }
    first = {"spec": plain, "card": card, "claims": [{"name": "small", "says": "It is small."}]}
    other = {"spec": {**plain, "modalities": {"text": plain["modalities"]["text"]}}, "weights": "second-weights"}
    for name, content in {"first": first, "second": other}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(entries, "folder", lambda: tmp_path)
    return tmp_path


def test_the_packaged_entries_are_listed() -> None:
    assert "unimoe-tiny" in zoo.list_entries()
    assert zoo.list_entries("unimoe-*", modality="speech", router="top_p") == ["unimoe-tiny"]
    assert zoo.list_entries("no-such-*") == []


def test_every_packaged_entry_can_be_described() -> None:
    for name in zoo.list_entries():
        card = zoo.card(name)
        assert card.total >= card.active > 0 and card.flops > 0
        assert card.modalities and card.parts
        assert name in str(card)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["first", "second"]),
        ({"modality": "time_series"}, ["first"]),
        ({"modality": "music"}, []),
        ({"pretrained": True}, ["second"]),
        ({"pretrained": False}, ["first"]),
        ({"router": "top_k"}, ["first", "second"]),
        ({"router": "top_p"}, []),
    ],
)
def test_filters(shelf: Path, filters: dict[str, Any], found: list[str]) -> None:
    assert zoo.list_entries(**filters) == found


def test_a_card_says_what_is_known(shelf: Path) -> None:
    card = zoo.card("first")
    model = zoo.create("first")
    assert card.total == sum(p.numel() for p in model.parameters())
    assert card.modalities == ("text", "time_series")
    assert "router top_k" in card.parts and "expert swiglu" in card.parts
    text = str(card)
    assert "a test" in text and "A title, arXiv 1234.5678, 2020" in text and "small: It is small." in text
    assert "## Claims" in card.markdown()


def test_an_unknown_name_suggests_the_near_miss(shelf: Path) -> None:
    with pytest.raises(EntryError, match=r"no entry 'frist' \(did you mean 'first'\?\)"):
        find_entry("frist")


def test_a_path_that_is_not_there_is_no_entry(shelf: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml: no such file"):
        plain_spec("nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"spec": {}, "cards": {}}, r"bad.yaml: spec: unknown key 'cards' \(did you mean 'card'\?\)"),
        ({"spec": {}, "card": {"papers": {}}}, r"bad.yaml: card: unknown key 'papers' \(did you mean 'paper'\?\)"),
        ({"spec": {}, "card": {"paper": {"title": "t", "arxiv": 1.5}}}, r"bad.yaml: card.paper.arxiv: expected str"),
        ({"spec": {}, "claims": [{"name": "n"}]}, r"bad.yaml: claims\[0\].says: missing"),
        ({"card": {}}, r"bad.yaml: spec: missing"),
    ],
)
def test_a_wrong_file_is_refused_with_its_path(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    with pytest.raises(SpecError, match=message):
        read_entry(path)


def test_a_spec_is_found_behind_every_kind_of_reference(shelf: Path, plain: dict[str, Any], saved: Path) -> None:
    (shelf / "bare.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    for ref in (plain, "first", shelf / "first.yaml", str(shelf / "bare.yaml")):
        assert plain_spec(ref) == plain
    assert plain_spec(saved)["backbone"]["dim"] == 16


@pytest.mark.parametrize(
    ("number", "text"), [(12, "12 "), (1234, "1.23 k"), (5.6e6, "5.6 M"), (2e9, "2 G"), (3e12, "3 T")]
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert count(number) == text
