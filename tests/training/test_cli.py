"""The command line, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load

from training.cli import main, packaged
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
            "logger": [
                {"class_path": "training.csv_log.CSVLog"},
                {"class_path": "training.tensorboard_log.TensorBoardLog"},
            ],
            "callbacks": [{"class_path": f"training.callbacks.{name}"} for name in callbacks],
        },
    }  # fmt: skip
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["training"])


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line with which a command ends, its exit status being 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


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
    assert "a run has been here" in refused(capsys, "fit", "--config", str(config), "--ckpt_path", "null")


def test_predictions_are_files_that_are_not_overwritten(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(config), "--trainer.max_steps", "1"])
    predict = ["predict", "--config", str(config), "--data.eval_batches", "2"]
    main(predict)
    folder = config.parent / "run" / "predictions"
    assert sorted(path.name for path in folder.iterdir()) == ["series.safetensors", "text.safetensors"]
    with safe_open(folder / "series.safetensors", "pt") as file:
        assert file.metadata() == {"modality": "time_series"}
    text = load((folder / "text.safetensors").read_bytes())  # not mapped: the file is truncated below
    assert sorted(text) == ["0000", "0001"] and text["0000"].shape[0] == 3 and text["0000"].isfinite().all()
    assert "text.safetensors" not in refused(capsys, *predict) and "series.safetensors" in refused(capsys, *predict)
    (folder / "text.safetensors").write_bytes(b"")
    main([*predict, "--predictions.overwrite", "true"])
    assert torch.equal(load((folder / "text.safetensors").read_bytes())["0001"], text["0001"])
    main([*predict, "--predictions.folder", str(config.parent / "elsewhere")])
    assert len(list((config.parent / "elsewhere").iterdir())) == 2


def test_the_trainer_names_the_folder_of_everything(config: Path) -> None:
    other = config.parent / "other"
    main(["fit", "--config", str(config), "--trainer.max_steps", "1", "--trainer.default_root_dir", str(other)])
    assert {"last.ckpt", "metrics.csv", "tensorboard"} <= {path.name for path in other.iterdir()}
    assert list((other / "tensorboard").glob("events.*")) and not (config.parent / "run").exists()
    with pytest.raises(ValueError, match="no trainer of ours"):
        CSVLog().log_metrics({"a": 1.0}, 1)


def test_dotted_overrides_reach_the_description(config: Path) -> None:
    main(["fit", "--config", str(config), "--model.overrides", "{backbone.dim: 24}", "--trainer.max_steps", "1"])
    saved = torch.load(config.parent / "run" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["spec"]["backbone"]["dim"] == 24


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "sneaky_package.Callback"])
def test_classes_from_elsewhere_are_refused_before_they_are_imported(
    config: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["callbacks"].append({"class_path": path})
    config.write_text(yaml.safe_dump(settings))
    assert refused(capsys, "fit", "--config", str(config)).startswith(f"trainer.callbacks.3.class_path: '{path}' is")


@pytest.mark.parametrize(("key", "value"), [("logger", "sneaky_package.Log"), ("plugins", ["sneaky_package.IO"])])
def test_short_forms_are_refused_too(config: Path, key: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["trainer"][key] = value
    config.write_text(yaml.safe_dump(settings))
    assert refused(capsys, "fit", "--config", str(config)).startswith(f"trainer.{key}: 'sneaky_package")


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("fit", ["--model.spec", "unimoe-tny"], "no entry 'unimoe-tny' (did you mean 'unimoe-tiny'?)"),
        ("fit", ["--model.overrides", "{backbone.dimm: 24}"], "backbone: unknown key 'dimm' (did you mean 'dim'?)"),
        ("fit", ["--data.sources", "{text: {data: {type: text_files, path: gone.txt}}}"], "gone.txt: no such file"),
        ("fit", ["--data.sources", "{txt: {data: {type: docstrings}}}"], "sources.txt.modality: the model has no"),
        ("fit", ["--model.init_from", "gone.safetensors"], "gone.safetensors"),
        ("fit", ["--trainer.accelerator", "gpu"], "No supported gpu backend found"),
        ("validate", [], "no last.ckpt there; train first"),
        ("test", ["--ckpt_path", "gone.ckpt"], "gone.ckpt"),
    ],
)
def test_expected_mistakes_end_with_one_line(
    config: Path, command: str, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "gpu" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert says in refused(capsys, command, "--config", str(config), *options)


def test_unexpected_errors_keep_their_traceback(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.MixtureData.train_dataloader", lambda self: torch.zeros(2).view(3))
    with pytest.raises(RuntimeError):
        main(["fit", "--config", str(config)])
    monkeypatch.setattr("training.data.MixtureData.train_dataloader", lambda self: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        main(["fit", "--config", str(config)])


def test_packaged_configurations_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/stages/quickstart.yaml"
    assert packaged(["curriculum", "--config", name, "--dry-run"])[2] == str(ROOT / name)
    assert packaged(["--config=" + name, "configs/gone.yaml"]) == [f"--config={ROOT / name}", "configs/gone.yaml"]
    assert "unimoe-tiny" in printed(capsys, "fit", "--config", "configs/train/unimoe-tiny.yaml", "--print_config")
    (tmp_path / "configs/stages").mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    assert packaged(["--config", name])[1] == name


def test_an_unknown_command_names_the_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="did you mean 'curriculum'"):
        main(["curiculum"])
    main([])
    assert "curriculum" in capsys.readouterr().out
