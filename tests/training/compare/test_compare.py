"""The command, in this process: equal cells are run once, whatever happens; the table says what was measured."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from training.claims.measuring import Layer
from training.claims.widths import Solved
from training.cli import COMMANDS
from training.compare import cells, command, plan, running, table
from training.compare.cells import Cell, Measurement
from training.compare.config import read
from training.compare.drawing import heat

Capture = pytest.CaptureFixture[str]
FFN = "backbone.layers.0.block.ffn"


@pytest.fixture
def config(language: Callable[..., Any], budget: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes a comparison of a mixture, a dense network and a mixture with null experts."""

    def write(**changes: Any) -> Path:
        systems = [
            {"name": "two", "spec": language()},
            {"name": "dense", "spec": language(), "overrides": {FFN: {"type": "dense", "hidden": 8}}},
            {"name": "null", "spec": language(null_experts={"zero": 2})},
        ]
        whole = {"reference": "two", "output": str(tmp_path / "out"), "train": budget, "systems": systems, **changes}
        (tmp_path / "compare.yaml").write_text(yaml.safe_dump(whole))
        return tmp_path / "compare.yaml"

    return write


def refused(capsys: Capture, *argv: object) -> str:
    """The one line with which the command ends, its exit status being 2."""
    assert command.main(["--quiet", *map(str, argv)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line.removeprefix("error: ")


def test_a_comparison_from_plan_to_plots(config: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    path, out = config(), tmp_path / "out"
    assert COMMANDS["compare"] == command.__name__
    assert command.main(["--config", str(path), "--dry_run", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "ffn.hidden 8 -> " in said and "3 cells, 0 finished; 3 steps of 2 windows" in said
    assert not out.exists(), "a dry run writes nothing"

    assert command.main(["--config", str(path), "--quiet"]) == 0
    printed = capsys.readouterr().out
    written = {p.name for p in out.iterdir()}
    assert {"table.md", "table.csv", "table.json", "loss.png", "loss.csv", "routing-two.png", "cells"} <= written
    assert "routing-dense.png" not in written and len(list((out / "cells").iterdir())) == 3
    assert (out / "table.md").read_text() in printed
    with (out / "table.csv").open(newline="") as handle:
        rows = {row["system"]: row for row in csv.DictReader(handle)}
    assert list(rows) == ["two", "dense", "null"]
    assert rows["two"]["gap"] == "0.0" and rows["two"]["mean_k"] == "2.0" and rows["dense"]["mean_k"] == ""
    gap = float(rows["dense"]["loss"]) - float(rows["two"]["loss"])
    assert float(rows["dense"]["gap"]) == pytest.approx(gap, abs=2e-4) and float(rows["dense"]["gap_error"]) > 0
    flops = [float(row["flops"]) for row in rows.values()]
    assert max(flops) / min(flops) - 1 < 0.04
    assert float(rows["null"]["null_share"]) > 0
    assert {row["system"] for row in json.loads((out / "table.json").read_text())["rows"]} == set(rows)


def test_a_system_that_fails_is_said_before_anything_runs(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(plain: object, train: object, tick: object) -> None:
        raise RuntimeError("it broke")

    monkeypatch.setattr(plan, "run", fail)
    assert command.main(["--config", str(config()), "--dry_run", "--quiet"]) == 0
    assert capsys.readouterr().out.count("; FAILS: RuntimeError: it broke") == 3


def test_a_finished_cell_is_never_run_again(
    config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        running, "measure", lambda cell, tick: (ran.append(f"{cell.system}{cell.seed}"), measured(cell))[1]
    )
    path = str(config())
    assert command.main(["--config", path, "--only", "null", "--quiet"]) == 0
    assert ran == ["null0"]
    assert command.main(["--config", path, "--seeds", "2", "--quiet"]) == 0
    assert ran[1:] == ["two0", "dense0", "two1", "dense1", "null1"], "seed by seed"
    assert command.main(["--config", path, "--seeds", "2", "--quiet"]) == 0 and len(ran) == 6
    for file in (tmp_path / "out/cells").glob("*.json"):
        file.write_text("{")
    assert "no cell of this comparison" in refused(capsys, "--config", path)
    assert command.main(["--config", str(config(train={"steps": 4})), "--only", "two", "--quiet"]) == 0
    assert ran[6:] == ["two0"], "another training is another cell"


def test_a_cell_that_fails_stops_no_other(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    broken = {"dense"}

    def measure(cell: Cell, tick: object) -> Measurement:
        if cell.system in broken:
            raise RuntimeError("it broke")
        return measured(cell)

    monkeypatch.setattr(running, "measure", measure)
    path = str(config())
    assert command.main(["--config", path, "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "| null " in out and "Failed: dense, seed 0." in out and "it broke" in err
    broken.clear()
    assert command.main(["--config", path, "--quiet"]) == 0
    assert "| dense " in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_comparison_goes_on(
    config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-m", "training", "compare", "--config", str(config()), "--seeds", "2", "--workers", "2"]
    started = subprocess.Popen([*words, "--quiet"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (kept := list((tmp_path / "out/cells").glob("[!.]*.json"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    started.kill()
    started.wait()
    assert kept
    time.sleep(3)  # its workers end with it
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out/cells").glob("[!.]*.json")}
    assert len(done) < 6
    ran: list[str] = []
    real = running.measure
    monkeypatch.setattr(running, "measure", lambda cell, tick: (ran.append(cell.key), real(cell, tick))[1])
    assert command.main(["--config", str(config()), "--seeds", "2", "--quiet"]) == 0
    assert len(ran) == 6 - len(done) and not {f"{key}.json" for key in ran} & done.keys()
    assert all((tmp_path / "out/cells" / name).stat().st_mtime_ns == stamp for name, stamp in done.items())


def test_a_dead_worker_is_a_failure() -> None:
    future: Future[str | None] = Future()
    future.set_exception(BrokenProcessPool("gone"))
    assert "a worker died" in str(running._outcome(future))


@pytest.mark.slow
def test_workers_find_what_one_process_finds(config: Callable[..., Path], tmp_path: Path) -> None:
    found = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        assert command.main(["--config", str(config()), "--workers", workers, "--output", str(out), "--quiet"]) == 0
        found.append({p.name: json.loads(p.read_text())["measured"]["losses"] for p in (out / "cells").glob("*.json")})
    assert len(found[0]) == 3 and found[0] == found[1]


def measured(cell: Cell, loss: float = 1.0, layers: tuple[Layer, ...] = ()) -> Measurement:
    """A made-up result."""
    losses = tuple(float(10 * loss + i) for i in range(4))
    return Measurement(cell.system, cell.seed, loss, losses, (10,) * 4, ((1, 2.0, 1e6), (2, 1.5, 2e6)), 100.0, layers,
                       10, 5.0, 1e6, "abc", "old")  # fmt: skip


def test_what_decides_a_cell_is_in_its_key(config: Callable[..., Path]) -> None:
    made = plan.make(read(config(), seeds=2))
    two, dense, _ = made.systems
    keys = {c.key for c in (*two.cells, *dense.cells)}
    assert len(keys) == 4
    same = plan.make(read(config(output="elsewhere", workers=3)))
    assert same.systems[0].cells[0].key == two.cells[0].key, "where and how it is run decides nothing"
    assert plan.make(read(config(train={"steps": 3}))).systems[0].cells[0].key not in keys
    renamed = Cell("other", 0, two.cells[0].plain, two.cells[0].train, two.cells[0].text)
    assert renamed.key == two.cells[0].key
    assert Cell("two", 0, two.cells[0].plain, two.cells[0].train, "other text").key not in keys


def test_a_cell_comes_back_from_its_file(config: Callable[..., Path], tmp_path: Path) -> None:
    cell = plan.make(read(config())).systems[0].cells[0]
    assert cells.load(cell, tmp_path) is None
    result = measured(cell, layers=(Layer((1, 2, 3), 2, 3, 6, 0.5),))
    cells.save(cell, result, tmp_path)
    assert cells.load(cell, tmp_path) == result
    assert [p.name for p in (tmp_path / "cells").iterdir()] == [f"{cell.key}.json"]


def test_rows_say_deviation_and_sign(config: Callable[..., Path]) -> None:
    made = plan.make(read(config(), seeds=2))
    layer = Layer((30, 10, 0, 0, 10), 4, 25, 50, 1.0)
    own = [measured(c, 1.0 + 0.2 * c.seed, (layer,)) for c in made.systems[2].cells]
    other = [measured(c, 1.2) for c in made.systems[0].cells]
    solved = Solved({}, 2e6, {})
    row = table.row(own, other, solved)
    assert row.loss == pytest.approx(1.1) and row.deviation == pytest.approx(0.2 / math.sqrt(2))
    assert row.gap == pytest.approx(-0.1) and table.gap(row) == "-0.1000 ± 0.1414"
    assert (row.null_share, row.mean_k, row.load_ratio, row.dead) == (0.2, 2.0, 3.0, 2.0)
    alone = table.row(own[:1], other, solved)
    assert math.isnan(alone.deviation) and alone.gap == pytest.approx(-0.2) and table.gap(alone) == "-0.2000 ± 0.0000"
    reference = table.row(other, other, solved)
    assert table.gap(reference) == "-" and table.share(reference.mean_k, ".2f") == "-"


def test_a_heat_map_of_uneven_layers() -> None:
    cell = Cell("x", 0, {}, None, "")  # type: ignore[arg-type]
    layers = (Layer((1, 2, 3, 4, 9), 4, 1, 1, 0.0), Layer((5, 6, 8), 2, 1, 1, 0.0))
    load, null = heat(measured(cell, layers=layers))
    assert null == 1 and np.array_equal(load, [[1, 2, 3, 4, 9], [5, 6, 0, 0, 8]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refrence": "two"}, r"compare.yaml: .*unknown key 'refrence' \(did you mean 'reference'\?\)"),
        ({"reference": "tow"}, r"compare.yaml: reference: no system 'tow' \(did you mean 'two'\?\)"),
        ({"systems": ["top2-lm", "top2-lm"], "reference": "top2-lm"}, r"systems\[1\].name: 'top2-lm' is taken"),
        ({"systems": ["no-such-lm"], "reference": "no-such-lm"}, r"systems.no-such-lm: no entry 'no-such-lm'"),
        ({"systems": [{"spec": {}}], "reference": "x"}, r"systems\[0\].name: missing"),
        ({"seeds": 0}, r"seeds: got 0, expected 1 or more"),
        ({"tolerance": 2.0}, r"tolerance: got 2.0"),
        ({"train": {"steps": 0}}, r"train.steps: got 0"),
        ({"solve": ["experts.width"]}, r"systems.dense: solve: no key ends in experts.width"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(
    config: Callable[..., Path], changes: dict[str, Any], message: str, capsys: Capture
) -> None:
    import re

    assert re.search(message, refused(capsys, "--config", config(**changes)))


def test_a_misspelt_system_is_refused(config: Callable[..., Path], capsys: Capture) -> None:
    assert "no system 'dens' (did you mean 'dense'?)" in refused(capsys, "--config", config(), "--only", "dens")
    assert "gone.yaml" in refused(capsys, "--config", "gone.yaml")


@pytest.mark.parametrize("name", ["routers-small", "debug"])
def test_the_packaged_comparisons_are_plans(name: str, capsys: Capture) -> None:
    from zoo.hub.entries import configs

    made = plan.make(read(configs() / "compare" / f"{name}.yaml"))
    for system in made.systems:
        assert system.solved.flops == pytest.approx(made.target, rel=made.spec.tolerance)


def test_every_language_model_of_the_zoo_is_compared() -> None:
    """But for mola, which adapts a model that was trained before."""
    from zoo.hub.entries import configs, plain_spec

    texts = {p.stem for p in (configs() / "zoo").glob("*.yaml") if set(plain_spec(p)["modalities"]) == {"text"}}
    named = {system.title for system in read(configs() / "compare" / "routers-small.yaml").systems}
    assert texts - named == {"mola"}
