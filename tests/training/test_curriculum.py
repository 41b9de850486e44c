"""Curricula: a killed one goes on bit-equal, stages enter as they say, mistakes are named before anything trains."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training.curriculum import CurriculumSpec, build, main, run
from training.moments import Remember, read
from training.strategies.fsdp import Sharded
from zoo.spec import SpecError, parse

SPLIT = {"backbone.layers.0.block.ffn": {"type": "dense", "hidden": 16}}


def describe(output: Path, parts: Any) -> dict[str, Any]:
    """Two specialists, a merge with warm-up, joint training with jitter and a balance loss."""
    tiny_spec, sources = parts
    spec = tiny_spec(balance=[{"type": "switch", "weight": 0.1, "final": 0.01, "anneal": 4}], gate={"jitter": 0.1})
    both = sources()
    own = {name: {"data": {"sources": {name: both[name]}}, "model": {"overrides": SPLIT}} for name in both}
    return {
        "output": str(output),
        "defaults": {
            "model": {"spec": spec, "lr": 0.01, "schedule": "constant"},
            "data": {"micro_batches": 2, "sources": both},
            "trainer": {"accelerator": "cpu", "log_every": 1, "save_every": 2, "tensorboard": False, "progress": False},
        },
        "stages": [
            {"name": "text", "steps": 2, "fit": own["text"]},
            {"name": "series", "steps": 2, "fit": own["series"]},
            {
                "name": "warm-up", "steps": 2,
                "enter": {
                    "type": "merge", "stages": ["text", "series"], "owners": {"text": "text", "time_series": "series"}
                },
                "fit": {"model": {"trainable": [r"\.router\."]}},
            },
            {"name": "joint", "steps": 6, "enter": {"type": "copy", "stage": "warm-up"}},
        ],
    }  # fmt: skip


def losses(folder: Path) -> list[tuple[str, ...]]:
    """(step, losses, gradient norm) of every logged step."""
    with (folder / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    return [tuple(v for k, v in sorted(r.items()) if "per_second" not in k) for r in rows]


class Stopped(Exception):
    pass


def stop_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training breaks off in the joint stage after so many of its steps."""
    from training.module import UnifiedModule

    original = UnifiedModule.training_step

    def training_step(self: Any, batch: Any, index: int) -> None:
        if (
            self.hparams["trainable"] is None
            and self.hparams["spec"]["backbone"]["layers"][0]["block"]["ffn"]["type"] == "moe"
            and self.done == step
        ):
            raise Stopped
        original(self, batch, index)

    monkeypatch.setattr(UnifiedModule, "training_step", training_step)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_parts: Any) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(parse(CurriculumSpec, describe(folder, tiny_parts)))
    return folder


def test_stopped_in_stage_three_goes_on_bit_equal(unbroken, tmp_path, monkeypatch, tiny_parts):
    spec = parse(CurriculumSpec, describe(tmp_path, tiny_parts))
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        with pytest.raises(Stopped):
            run(spec)
    assert not (tmp_path / "joint" / "weights.safetensors").exists()
    written = (tmp_path / "warm-up" / "weights.safetensors").stat().st_mtime_ns
    run(spec)
    assert (tmp_path / "warm-up" / "weights.safetensors").stat().st_mtime_ns == written, "finished stages are skipped"
    assert losses(tmp_path / "joint") == losses(unbroken / "joint")
    assert len(losses(tmp_path / "joint")) == 6
    expected = load_file(unbroken / "joint" / "weights.safetensors")
    for name, value in load_file(tmp_path / "joint" / "weights.safetensors").items():
        assert torch.equal(value, expected[name]), name


def test_moments_are_not_carried_into_a_sharded_stage() -> None:
    trainer: Any = SimpleNamespace(strategy=Sharded())
    with pytest.raises(ValueError, match="expected optimiser: reset there"):
        Remember({}).setup(trainer, None, "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize(("optimiser", "steps"), [("carried", 3.0), ("reset", 1.0)])
def test_spawned_experts_go_on_with_the_dense_moments(tmp_path, tiny_parts, optimiser, steps):
    plain = describe(tmp_path, tiny_parts)
    (text,) = (stage["fit"] for stage in plain["stages"] if stage["name"] == "text")
    enter = {"type": "spawn", "stage": "text", "optimiser": optimiser}
    experts = {"backbone.layers.0.block.ffn.experts.hidden": 16}
    diverse = {"data": text["data"], "model": {"overrides": experts}}
    plain["stages"] = [
        {"name": "text", "steps": 2, "fit": text},
        {"name": "diverse", "steps": 1, "enter": enter, "fit": diverse},
    ]
    spec = parse(CurriculumSpec, plain)
    run(spec)
    found = read(tmp_path / "diverse" / "last.ckpt", build(spec, spec.stages[1])[0])
    counted = found["step"]
    assert counted["backbone.blocks.0.ffn.experts.gate_up"] == counted["backbone.norm.weight"] == steps
    assert counted["backbone.blocks.0.ffn.router.gate.weight"] == 1


def test_warm_up_trains_gates_only(unbroken):
    before = load_file(unbroken / "text" / "weights.safetensors")
    after = load_file(unbroken / "warm-up" / "weights.safetensors")
    other = load_file(unbroken / "series" / "weights.safetensors")
    merged = (before["backbone.blocks.0.attention.q.weight"] + other["backbone.blocks.0.attention.q.weight"]) / 2
    torch.testing.assert_close(after["backbone.blocks.0.attention.q.weight"], merged)
    gates = after["backbone.blocks.0.ffn.experts.gate_up"]
    dense = before["backbone.blocks.0.ffn.gate_up"]
    assert torch.equal(gates[0], torch.cat([dense[:8], dense[16:24]])), "first half of the text specialist"
    joint = load_file(unbroken / "joint" / "weights.safetensors")
    assert not torch.equal(joint["backbone.blocks.0.ffn.experts.gate_up"], gates)
    router = "backbone.blocks.0.ffn.router.gate.weight"
    assert not torch.equal(after[router], joint[router])


@pytest.mark.slow
def test_killed_process_goes_on_bit_equal(unbroken, tmp_path, tiny_parts):
    config = tmp_path / "curriculum.yaml"
    config.write_text(json.dumps(describe(tmp_path / "run", tiny_parts)))
    command = [sys.executable, "-m", "training", "curriculum", "--config", str(config)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoint = tmp_path / "run" / "joint" / "last.ckpt"
    deadline = time.monotonic() + 100
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0
    expected = load_file(unbroken / "joint" / "weights.safetensors")
    for name, value in load_file(tmp_path / "run" / "joint" / "weights.safetensors").items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [{"name": "a", "steps": 0}]}, r"stages\[0\]\.steps: got 0"),
        (
            {"stages": [{"name": "a", "steps": 1, "enter": {"type": "copy", "stage": "b"}}]},
            r"stages\[0\]\.enter: 'b' is no stage before",
        ),
        ({"stages": [{"name": "a", "steps": 1}, {"name": "a", "steps": 1}]}, r"stages\[1\]\.name: 'a' is taken"),
        ({"stages": [{"name": "a", "stepps": 1}]}, r"unknown key 'stepps' \(did you mean 'steps'\?\)"),
        (
            {
                "stages": [
                    {"name": "a", "steps": 1},
                    {"name": "b", "steps": 1, "enter": {"type": "merge", "stages": ["a"], "owners": {"text": "c"}}},
                ]
            },
            r"stages\[1\]\.enter\.owners\.text: 'c' is not among the merged stages",
        ),
        (
            {"stages": [{"name": "a", "steps": 1, "enter": {"type": "merg", "stages": ["b"]}}]},
            r"stages\[0\]\.enter\.type: no surgery 'merg' \(did you mean 'merge'\?\)",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, change, message, tiny_parts):
    with pytest.raises(SpecError, match=message):
        parse(CurriculumSpec, {**describe(tmp_path, tiny_parts), **change})


def test_command_checks_without_training(tmp_path, capsys, tiny_parts):
    config = tmp_path / "curriculum.yaml"
    config.write_text(json.dumps(describe(tmp_path / "run", tiny_parts)))
    assert main(["--config", str(config), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "warm-up: 2 steps" in out and not (tmp_path / "run").exists()
    wrong = describe(tmp_path / "run", tiny_parts)
    wrong["stages"][2]["enter"]["owners"]["speech"] = "text"
    config.write_text(json.dumps(wrong))
    assert main(["--config", str(config), "--dry-run"]) == 2
    assert "stages.warm-up.enter.owners.speech: no such modality" in capsys.readouterr().err
    wrong = describe(tmp_path / "run", tiny_parts)
    wrong["stages"][0]["fit"]["model"] = {"lrr": 1.0}
    config.write_text(json.dumps(wrong))
    assert main(["--config", str(config), "--dry-run"]) == 2
    assert "stages.text.fit.model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("model", {"lr": "fast"}, r"stages\.text\.fit\.model\.lr: expected float, got str"),
        ("data", {"micro_batches": "four"}, r"stages\.text\.fit\.data\.micro_batches: expected int"),
        ("model", {"spec": "unimoe-tny", "overrides": {}}, r"no entry 'unimoe-tny' \(did you mean 'unimoe-tiny'\?\)"),
        ("trainer", {"max_steps": 3}, r"stages\.text\.fit\.trainer: unknown key 'max_steps'"),
    ],
)
def test_wrong_values_are_named_before_training(tmp_path, capsys, tiny_parts, section, settings, message):
    wrong, config = describe(tmp_path / "run", tiny_parts), tmp_path / "curriculum.yaml"
    wrong["stages"][0]["fit"][section] = settings
    config.write_text(json.dumps(wrong))
    assert main(["--config", str(config)]) == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "run").exists()


def test_exponents_without_a_point_are_numbers(tmp_path, tiny_parts):
    """YAML 1.1 reads 1e-3 as a string."""
    plain = describe(tmp_path, tiny_parts)
    plain["stages"][0]["fit"]["model"]["lr"] = "1e-3"
    spec = parse(CurriculumSpec, plain)
    assert build(spec, spec.stages[0])[0].lr == 1e-3


def test_other_settings_do_not_go_on_with_a_run(unbroken, tiny_parts):
    changed = describe(unbroken, tiny_parts)
    changed["stages"][0]["fit"]["model"]["lr"] = 0.5
    with pytest.raises(FileExistsError, match=r"text: was begun with other settings \(model\.lr: 0\.01, now 0\.5\)"):
        run(parse(CurriculumSpec, changed))


@pytest.mark.parametrize("name", ["..", "a/b", "", "/tmp/x"])
def test_a_stage_is_a_folder_in_the_output(tmp_path, tiny_parts, name):
    with pytest.raises(SpecError, match=r"stages\[0\]\.name: got"):
        parse(CurriculumSpec, {**describe(tmp_path, tiny_parts), "stages": [{"name": name, "steps": 1}]})


def test_the_quickstart_keeps_what_is_not_a_runs(tmp_path, tiny_parts):
    from training.quickstart import DONE, make_room

    spec, other = parse(CurriculumSpec, describe(tmp_path, tiny_parts)), tmp_path / "thesis.txt"
    other.write_text("mine")
    with pytest.raises(FileExistsError, match="no run's"):
        make_room(spec, overwrite=False)
    (tmp_path / "text").mkdir()
    make_room(spec, overwrite=False)  # a run that was stopped goes on
    (tmp_path / DONE).write_text("{}")
    with pytest.raises(FileExistsError, match="--overwrite"):
        make_room(spec, overwrite=False)
    make_room(spec, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]


def test_shipped_curriculum_is_sound(capsys):
    config = Path(__file__).parents[2] / "configs" / "stages" / "quickstart.yaml"
    assert main(["--config", str(config), "--dry-run"]) == 0
    assert "joint" in capsys.readouterr().out
