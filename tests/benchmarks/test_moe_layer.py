"""The layer benchmark runs, compares before it measures, and writes what it says; no time is asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from benchmarks import moe_layer
from benchmarks.layer import candidates, clock, measure, studies
from benchmarks.layer.shapes import SHAPES, Target, tiny
from zoo.moe.experts.base import Backend

QUICK = ["--quick", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run over a shape, a decoding shape and both studies writes."""
    path = tmp_path_factory.mktemp("benchmark") / "out.json"
    threads = torch.get_num_threads()
    returned = moe_layer.run([*QUICK, "--shapes", "coarse,decode16,null,experts", "--json", str(path)])
    assert torch.get_num_threads() == threads
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert written.keys() == returned.keys()
    return written


def section(result: dict[str, Any], name: str, mode: str) -> dict[str, Any]:
    """The table of a shape and mode."""
    return next(s for s in result["sections"] if s["title"].startswith(name) and s["mode"] == mode)


def test_a_result_says_where_it_comes_from(result: dict[str, Any]) -> None:
    assert result["benchmark"] == "moe_layer"
    assert {"command", "date", "commit", "changed"} <= result.keys()
    assert {"cpu", "cores", "flags", "threads", "load_average", "gpu"} <= result["machine"].keys()
    assert result["machine"]["threads"] == 1
    assert {"python", "torch", "transformers"} <= result["versions"].keys()
    assert result["options"] == {
        "shapes": ["coarse", "decode16", "null", "experts"], "rounds": 2, "device": "cpu", "dtype": "float32",
        "quick": True,
    }  # fmt: skip
    assert result["copy_bytes_per_second"] > 0


def test_every_backend_and_implementation_is_measured(result: dict[str, Any]) -> None:
    expected = {"dense SwiGLU", *(f"transformers {i}" for i in ("eager", "grouped_mm", "batched_mm"))}
    expected |= {f"moezoo {backend}" for backend in get_args(Backend)}
    for mode in ("forward", "train", "memory"):
        found = section(result, "coarse", mode)
        names = {row["name"] for row in found["rows"]}
        assert expected <= names | found["skipped"].keys()
        assert {"moezoo reference", "moezoo grouped"} <= names
    for mode in ("same experts", "random experts"):
        assert {row["name"] for row in section(result, "decode16", mode)["rows"]} >= {"moezoo grouped"}


def test_outputs_and_gradients_are_compared(result: dict[str, Any]) -> None:
    agreement = section(result, "coarse", "train")["agreement"]
    assert {"moezoo grouped", "moezoo grouped, gradients", "transformers batched_mm, gradients"} <= agreement.keys()
    assert 0 <= max(agreement.values()) <= 1e-4


def test_ratios_follow_from_the_figures(result: dict[str, Any]) -> None:
    for found in (section(result, "coarse", "forward"), section(result, "decode16", "random experts")):
        value = {row["name"]: row["value"] for row in found["rows"]}
        best = min(v for name, v in value.items() if name.startswith("transformers"))
        for row in found["rows"]:
            assert row["low"] <= row["value"] <= row["high"]
            assert row["ratios"]["dense"] == pytest.approx(row["value"] / value["dense SwiGLU"])
            assert row["ratios"]["transformers' best"] == pytest.approx(row["value"] / best)
    memory = section(result, "coarse", "memory")
    base = next(row for row in memory["rows"] if row["name"] == "transformers grouped_mm")
    assert memory["unit"] == "MiB" and base["ratios"] == {"grouped_mm": 1, "grouped_mm, weight gradients left out": 1}


def test_targets_stand_beside_the_figures(result: dict[str, Any]) -> None:
    for found in result["sections"]:
        rows = {row["name"]: row for row in found["rows"]}
        assert found["verdicts"], found["title"]
        for verdict in found["verdicts"]:
            assert verdict["name"] != "moezoo reference"
            assert verdict["ratio"] == rows[verdict["name"]]["ratios"][verdict["base"]]
            assert verdict["met"] == (verdict["ratio"] <= verdict["limit"])
    limits = {v["base"]: v["limit"] for v in section(result, "coarse", "forward")["verdicts"]}
    assert limits == {"dense": 1.10, "transformers' best": 1.0}


def test_floors_are_measured(result: dict[str, Any]) -> None:
    floors = section(result, "coarse", "forward")["floors"]
    assert floors["gemm_rate"] > 0 and floors["flops_ms"] > 0 and floors["bytes_ms"] > 0 and floors["experts_ms"] > 0
    assert floors["copy_rate"] == result["copy_bytes_per_second"]


def test_studies_have_their_rows(result: dict[str, Any]) -> None:
    names = {row["name"] for row in section(result, "fine", "train")["rows"]}
    assert {f"moezoo grouped, {share} null" for share in ("0%", "25%", "50%")} <= names
    many = section(result, "many experts", "forward")
    assert {v["name"] for v in many["verdicts"]} >= {"moezoo grouped, 256 x 256"}


def test_the_forced_bias_gives_the_share_of_null_slots() -> None:
    setting = measure.Setting(device="cpu", dtype=torch.float32, rounds=1, copy_rate=1.0)
    shape = tiny(SHAPES["fine"])
    x = torch.randn(1, shape.tokens, shape.dim, generator=torch.Generator().manual_seed(0))
    for share, layer in studies.forced_layers(shape, "grouped", setting).items():
        assert studies.share_of(layer, x) == pytest.approx(share)


def test_equal_active_flops() -> None:
    assert len({s.flops for s in studies.EXPERT_SHAPES}) == 1


def test_peak_memory_is_exact() -> None:
    def call() -> None:
        first = torch.zeros(1024)  # 4096 bytes
        second = first + 1  # 8192
        del first  # 4096
        (second * 2).sum()  # 8192, and the scalar

    assert 8192 <= clock.peak_bytes(call, "cpu") <= 8192 + 64


def test_candidates_that_disagree_are_an_error() -> None:
    shape = tiny(SHAPES["coarse"])
    found, _ = candidates.build(shape, "cpu", torch.float32)
    own = next(c for c in found if c.name == "moezoo grouped")
    broken = candidates.Candidate(own.name, own.family, own.module, lambda x: own.call(x) * 1.001)
    others = [c for c in found if c.family == "transformers"]
    with pytest.raises(measure.DisagreementError, match=r"outputs differ by more than 0.0001: .*moezoo grouped"):
        measure.agreement([*others, broken], torch.randn(1, shape.tokens, shape.dim), {})


def test_turns_call_every_candidate_and_slow_ones_less() -> None:
    counts = {"fast": 0, "slow": 0}

    def work(name: str, size: int) -> Callable[[], None]:
        def call() -> None:
            counts[name] += 1
            torch.ones(size).sum()

        return call

    calls = {"fast": work("fast", 10), "slow": work("slow", 20_000_000)}
    times = clock.interleave(calls, rounds=6, device="cpu", min_ms=0)
    assert times["fast"].rounds == 6 and times["slow"].rounds == clock.SLOW_ROUNDS
    assert counts == {"fast": 2 + 6, "slow": 1 + clock.SLOW_ROUNDS}


def test_verdicts_name_met_and_missed() -> None:
    row = measure.row("ours", "moezoo", clock.Timing(2.0, 2.0, 2.0, 1), {"dense": 1.25})
    targets = [Target(base="dense", limit=1.3), Target(base="dense", limit=1.2)]
    assert [v.met for v in measure.verdicts([row], ["ours"], targets)] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "corse"], "--shapes: got 'corse', expected some of fine, wide, coarse"),
        (["--rounds", "0"], "--rounds: got 0, expected 1 or more"),
    ],
)
def test_bad_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        moe_layer.options(arguments)
    assert message in capsys.readouterr().err


def test_help_names_the_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        moe_layer.options(["--help"])
    assert done.value.code == 0 and "decode16" in capsys.readouterr().out


def test_backends_come_from_the_layer_itself() -> None:
    assert get_args(Backend) == candidates.BACKENDS
