"""The verb `claims`: figure against expectation, what is skipped, what crashes, what is recorded."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import zoo
from zoo import claims, cli, registry
from zoo.claims import ClaimSpec, Finding
from zoo.hub.claim import Found
from zoo.hub.entries import Entry, read_entry
from zoo.hub.recording import record
from zoo.spec import SpecError

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True, kw_only=True)
class DepthSpec(ClaimSpec):
    """The number of layers.

    least  layers that there must be; a negative number crashes
    """

    least: int

    def check(self, entry: Entry, *, seed: int = 0, progress: bool = True) -> Finding:
        if self.least < 0:
            raise RuntimeError("this check is broken")
        depth = entry.spec["backbone"]["layers"][0]["repeat"] + seed
        return Finding(depth, f"at least {self.least}", depth >= self.least, "counted")


@pytest.fixture
def path(plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An entry with claims of every kind."""
    module = ModuleType("depth_claim")
    module.DepthSpec = DepthSpec  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "depth_claim", module)
    monkeypatch.setitem(registry.TABLE["claim"], "depth", "depth_claim:DepthSpec")
    stated = [
        {"name": "deep", "says": "It has two layers.", "check": {"type": "depth", "least": 2}},
        {"name": "deeper", "says": "It has three.", "check": {"type": "depth", "least": 3}},
        {"name": "deepest", "says": "It has nine.", "slow": True, "check": {"type": "depth", "least": 9}},
        {"name": "good", "says": "It is good."},
    ]
    file = tmp_path / "sample.yaml"
    file.write_text(yaml.safe_dump({"spec": plain, "claims": stated}, sort_keys=False))
    return file


def ran(capsys: Capture, *words: object) -> tuple[int, str, str]:
    status = cli.main(["claims", *map(str, words)])
    return status, *capsys.readouterr()


def test_figures_against_expectations(path: Path, capsys: Capture) -> None:
    status, out, _ = ran(capsys, path)
    assert status == 0, "a claim that does not hold is a result"
    assert (
        "deep: holds\n  says:     It has two layers.\n  figure:   2\n  expected: at least 2\n  note:     counted" in out
    )
    assert "deeper: DOES NOT HOLD" in out
    assert "deepest: skipped" in out and "give --slow" in out and "good: skipped" in out and "stated only" in out
    assert ran(capsys, path, "--strict")[0] == 1
    assert ran(capsys, path, "--claim", "deep", "--strict")[0] == 0
    assert "deepest: DOES NOT HOLD" in ran(capsys, path, "--claim", "deepest")[1]
    assert "deepest: DOES NOT HOLD" in ran(capsys, path, "--slow")[1]
    assert "deeper: holds" in ran(capsys, path, "--seed", 1)[1]


def test_json(path: Path, capsys: Capture) -> None:
    found = {row["claim"]: row for row in json.loads(ran(capsys, path, "--json")[1])}
    assert found["deeper"]["outcome"] == "fails" and found["deeper"]["figure"] == 2
    assert found["good"]["outcome"] == "skipped" and "figure" not in found["good"]


def test_a_crash_is_an_error_and_the_others_still_run(path: Path, capsys: Capture) -> None:
    path.write_text(path.read_text().replace("least: 2", "least: -1"))
    status, out, _ = ran(capsys, path)
    assert status == 1 and "deep: ERROR" in out and "this check is broken" in out and "deeper: DOES NOT HOLD" in out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type: depth\n    least: 3", "type: dept\n    least: 3", "no claim 'dept' (did you mean 'depth'?)"),
        ("least: 3", "leest: 3", "claims.deeper.check: unknown key 'leest' (did you mean 'least'?)"),
        ("type: depth\n    least: 3", "least: 3", "check.type: missing in the check of 'deeper'"),
    ],
)
def test_a_wrong_check_is_refused_before_any_runs(
    path: Path, capsys: Capture, old: str, new: str, message: str
) -> None:
    path.write_text(path.read_text().replace(old, new))
    status, out, err = ran(capsys, path)
    assert status == 2 and message in err and not out


def test_a_misspelt_claim(path: Path, capsys: Capture) -> None:
    status, _, err = ran(capsys, path, "--claim", "deap")
    assert status == 2 and "no claim 'deap' (did you mean 'deep'?); there are deep, deeper" in err


def test_what_is_found_is_recorded_and_shown(path: Path, capsys: Capture) -> None:
    assert "deep: It has two layers. [not measured yet]" in str(zoo.card(path))
    for _ in range(2):
        assert ran(capsys, path, "--record")[0] == 0
    deep, deeper, deepest, good = read_entry(path).content.claims
    assert deep.found is not None and deeper.found is not None and deepest.found is good.found is None
    assert (deep.found.figure, deep.found.holds, deep.found.note) == (2.0, True, "counted")
    assert deep.found.command == "zoo claims sample --claim deep" and deeper.found.holds is False
    card = str(zoo.card(path))
    assert "deep: It has two layers. [holds: 2, expected at least 2]" in card
    assert "deeper: It has three. [does NOT hold: 2, expected at least 3]" in card
    assert "good: It is good.\n" in card + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "# head\nclaims:  # all\n  - {name: a, says: It is a.}  # one\n  - name: b\n    says: >\n      It\n"
        "      is b.\n\n# end\nspec: {}\n",
        "spec: {}\nclaims: [{name: a, says: It is a.,}, {name: b, says: 'It is b.'}]\n",
        "spec: {}\nclaims:\n- name: a\n  says: It is a.\n  check:\n    type: band\n    values: [1,\n      2]\n"
        "  found:\n    figure: 1.0\n    expected: x\n    holds: false\n  # kept\n- name: b\n  says: It is b.",
    ],
)
def test_recording_changes_nothing_else(tmp_path: Path, text: str) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(text)
    before = yaml.safe_load(text)
    for name, figure in (("a", 1.5), ("b", 2.5), ("a", 3.5)):
        found = Found(figure=figure, expected='more: "x" # 1', holds=True, note="é")
        record(file, name, found)
    after = yaml.safe_load(file.read_text())
    recorded = [claim.pop("found") for claim in after["claims"]]
    for claim in before["claims"]:
        claim.pop("found", None)
    assert after == before and [r["figure"] for r in recorded] == [3.5, 2.5]
    assert recorded[0] == {"figure": 3.5, "expected": 'more: "x" # 1', "holds": True, "note": "é"}
    assert all(
        comment in file.read_text() for comment in ("# head", "# all", "# one", "# end", "# kept") if comment in text
    )
    with pytest.raises(SpecError, match="no claim 'c'"):
        record(file, "c", found)


@pytest.mark.parametrize("end", ["    k: *x\n", "    - *x\n", "    - 1\n    - k: *x\n"])
def test_nothing_is_recorded_behind_an_alias(tmp_path: Path, end: str) -> None:
    file = tmp_path / "e.yaml"
    text = f"spec: &x {{a: 1}}\nclaims:\n- name: a\n  says: It is a.\n  check:\n{end}"
    file.write_text(text)
    with pytest.raises(SpecError, match=r"line \d: a claim ends in an alias"):
        record(file, "a", Found(figure=1.0, expected="x", holds=True))
    assert file.read_text() == text


def test_checks_of_every_packaged_entry_are_well_formed() -> None:
    from zoo.hub.entries import find_entry

    for name in zoo.list_entries():
        for claim in find_entry(name).content.claims:
            if claim.check is not None:
                assert isinstance(claims.spec_of(claim), ClaimSpec)
