"""The command line, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from training.cli import main
from training.csv_log import CSVLog

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "configs" / "train" / "unimoe-tiny.yaml")


@pytest.fixture
def config(tiny: Any, tmp_path: Path) -> Path:
    """A tiny run in a folder of its own, with a description in a file of its own."""
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(tiny.spec()))
    run = tmp_path / "run"
    callbacks = ["metrics.Metrics", "checkpoint.LastCheckpoint", "ema.EMA"]
    settings = {
        "ckpt_path": "auto",
        "model": {"spec": str(tmp_path / "model.yaml"), "lr": 1e-2, "schedule": "constant"},
        "data": {"sources": tiny.sources(), "micro_batches": 2, "eval_batches": 1},
        "trainer": {
            "default_root_dir": str(run), "max_steps": 4, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1,
            "limit_val_batches": 0, "enable_progress_bar": False, "enable_model_summary": False,
            "logger": {"class_path": "training.csv_log.CSVLog", "init_args": {"path": str(run / "metrics.csv")}},
            "callbacks": [{"class_path": f"training.callbacks.{name}"} for name in callbacks],
        },
    }  # fmt: skip
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["training"])


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert not end.value.code, end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("over", [None, "cpu", "debug", "gpu", "fsdp"])
def test_a_printed_configuration_feeds_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], over: str | None
) -> None:
    more = [] if over is None else ["--config", str(ROOT / "configs" / "trainer" / f"{over}.yaml")]
    first = printed(capsys, "fit", "--config", TRAIN, *more, "--model.lr", "5e-4", "--print_config")
    (tmp_path / "again.yaml").write_text(first)
    assert printed(capsys, "fit", "--config", str(tmp_path / "again.yaml"), "--print_config") == first
    resolved = yaml.safe_load(first)
    assert resolved["model"]["lr"] == 5e-4 and set(resolved["data"]["sources"]) >= {"text", "speech", "music"}


def test_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "fit", "--help")
    for words in (
        "--model.spec",
        "an entry's name, a YAML file",
        "--model.divide",
        "--data.micro_batches",
        "--ckpt_path",
    ):
        assert words in " ".join(shown.split()), words


def test_fit_goes_on_and_the_others_use_its_checkpoint(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config.parent / "run"
    main(["fit", "--config", str(config)])
    assert torch.load(folder / "last.ckpt", weights_only=True)["training"]["done"] == 4
    main(["fit", "--config", str(config), "--trainer.max_steps", "6"])
    assert torch.load(folder / "last.ckpt", weights_only=True)["training"]["done"] == 6
    rows = CSVLog(str(folder / "metrics.csv")).rows()
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    for command, name in (("validate", "val"), ("test", "test")):
        main([command, "--config", str(config), "--trainer.limit_val_batches", "2"])
        assert f"{name}/text/loss" in capsys.readouterr().out
    main(["predict", "--config", str(config)])
    main(
        [
            "validate",
            "--config",
            str(config),
            "--ckpt_path",
            str(folder / "last.ckpt"),
            "--trainer.limit_val_batches",
            "1",
        ]
    )
    with pytest.raises(FileExistsError, match="a run has been here"):
        main(["fit", "--config", str(config), "--ckpt_path", "null"])


def test_dotted_overrides_reach_the_description(config: Path) -> None:
    main(["fit", "--config", str(config), "--model.overrides", "{backbone.dim: 24}", "--trainer.max_steps", "1"])
    saved = torch.load(config.parent / "run" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["spec"]["backbone"]["dim"] == 24


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "sneaky_package.Callback"])
def test_classes_from_elsewhere_are_refused_before_they_are_imported(config: Path, path: str) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["callbacks"].append({"class_path": path})
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit, match=rf"trainer.callbacks.3.class_path: '{path}' is refused"):
        main(["fit", "--config", str(config)])


@pytest.mark.parametrize(("key", "value"), [("logger", "sneaky_package.Log"), ("plugins", ["sneaky_package.IO"])])
def test_short_forms_are_refused_too(config: Path, key: str, value: Any) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["trainer"][key] = value
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit, match=rf"trainer.{key}: 'sneaky_package"):
        main(["fit", "--config", str(config)])


def test_wrong_descriptions_end_with_one_line(config: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: no entry 'unimoe-tny' \(did you mean 'unimoe-tiny'\?\)"):
        main(["fit", "--config", str(config), "--model.spec", "unimoe-tny"])
    with pytest.raises(SystemExit, match=r"^error: backbone: unknown key 'dimm' \(did you mean 'dim'\?\)"):
        main(["fit", "--config", str(config), "--model.overrides", "{backbone.dimm: 24}"])


def test_no_checkpoint_to_validate(config: Path) -> None:
    with pytest.raises(SystemExit, match=r"no last\.ckpt there; train first"):
        main(["validate", "--config", str(config)])


def test_an_unknown_command_names_the_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="did you mean 'curriculum'"):
        main(["curiculum"])
    main([])
    assert "curriculum" in capsys.readouterr().out
