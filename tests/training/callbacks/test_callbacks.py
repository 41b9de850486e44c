"""Logs, progress, heat maps, the collapse alarm and averaged weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from training.callbacks.collapse import CollapseAlarm, CollapseWarning
from training.callbacks.ema import EMA
from training.csv_log import CSVLog
from training.meter import Report
from training.run import fit
from training.sources import build_data


def run(tiny: Any, folder: Path, **settings: Any) -> Any:
    module = tiny.module(tiny.spec([{"type": "switch"}, {"type": "z_loss"}]))
    data = build_data({"sources": tiny.sources(), "micro_batches": 2, "eval_batches": 1})
    options = {"max_steps": 4, "log_every": 2, "progress": False, "tensorboard": False}
    fit(module, data, folder=folder, **{**options, **settings})
    return module


def test_the_logs_hold_what_matters(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path, tensorboard=True, val_every=2)
    rows = CSVLog(str(tmp_path / "metrics.csv")).rows()
    trained = [row for row in rows if row["train/text/loss"]]
    assert [row["step"] for row in trained] == ["2", "4"]
    for row in trained:
        assert float(row["train/text/loss"]) > 0 and float(row["train/time_series/mse_4"]) > 0
        assert 0 <= float(row["routing/null_share"]) < 1 and float(row["routing/mean_k"]) == 2
        assert float(row["routing/dropped_share"]) == 0 and float(row["tokens_per_second"]) > 0
        assert float(row["balance/switch"]) > 0 and float(row["balance/zloss"]) > 0
        for layer in range(2):
            assert float(row[f"routing/layer{layer}/mean_k"]) == 2
            assert sum(float(row[f"load/layer{layer}/expert{e}"]) for e in range(5)) == pytest.approx(1, abs=1e-4)
    assert all(float(row["val/text/loss"]) > 0 for row in rows if row["val/loss"])
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_figures_are_means_over_the_steps_of_a_report(tiny: Any) -> None:
    module = tiny.module(lr=0.0, clip=None)
    step = tiny.steps(module, [("text", range(3)), ("time_series", range(3)), ("text", [3, 4])])
    losses = [module.model(name, batch).loss for name, batch in step if name == "text"]
    wanted = sum(float(loss.total.detach()) for loss in losses) / sum(float(loss.count) for loss in losses)
    tiny.train(module, [step, step], log_every_n_steps=2)
    assert module.report.step == module.report.steps == 2
    assert module.report.scalars["train/text/loss"] == pytest.approx(wanted, rel=1e-5)
    slots = sum(float(layer.sum()) for parts in module.report.load.values() for layer in parts)
    tokens = sum(float(module.model.modality(name).units(batch)[1]) for name, batch in step)
    assert slots == 2 * 2 * 2 * tokens  # steps, layers, k


def test_heat_maps_are_drawn_per_modality(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path, heat_maps=2, max_steps=5, log_every=1)
    assert sorted(p.name for p in (tmp_path / "routing").iterdir()) == [f"step-000000{n}.png" for n in (2, 4, 5)]
    assert (tmp_path / "routing" / "step-0000002.png").read_bytes().startswith(b"\x89PNG")


def test_the_progress_bar_shows_them(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny, tmp_path, progress=True)
    shown = "".join(capsys.readouterr())
    assert "4/4" in shown
    for word in ("text=", "time_series=", "null=", "k=2", "tok/s="):
        assert word in shown


def alarm(loads: list[list[float]], **settings: Any) -> list[str]:
    """What the alarm says to reports of ten steps each, one layer."""
    watch, trainer, said = CollapseAlarm(start=0, **settings), SimpleNamespace(is_global_zero=True), []
    for i, load in enumerate(loads):
        report = Report(10 * (i + 1), 10, {}, {"text": [np.array(load)]})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.on_train_batch_end(trainer, SimpleNamespace(report=report), None, None, i)  # type: ignore[arg-type]
        said += [str(w.message) for w in caught if issubclass(w.category, CollapseWarning)]
    return said


def test_the_alarm_names_layer_share_and_fixes() -> None:
    said = alarm([[5, 5, 5, 5], [19, 1, 0, 0], [19, 1, 0, 0]], share=0.6)
    assert len(said) == 1
    assert "layer 0 expert 0 takes 95% of the slots" in said[0] and "balance loss" in said[0] and "step 20" in said[0]


def test_the_alarm_names_dead_experts_and_forgives() -> None:
    even, dead = [5, 5, 5, 5, 5, 5], [5, 5, 5, 5, 5, 0]
    assert alarm([even] * 3 + [dead] * 2, dead_steps=30) == []
    said = alarm([dead] * 4 + [even] + [dead] * 4, dead_steps=30)
    assert len(said) == 2 and "experts [5] for 30 steps" in said[0]


def test_an_even_load_over_few_experts_is_no_collapse() -> None:
    assert alarm([[5, 5]] * 3, share=0.4) == []


def test_the_average_follows_the_weights_and_copies_buffers(tiny: Any) -> None:
    module = tiny.module(tiny.spec([{"type": "bias", "weight": 0.1}], bias=True))
    module.model.register_buffer("count", torch.tensor(63, dtype=torch.uint8))
    steps = [tiny.steps(module, [("text", range(3))])] * 3
    seen: list[torch.Tensor] = []
    name = "backbone.blocks.0.ffn.router.gate.weight"

    import lightning as L

    class See(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append(dict(pl_module.model.named_parameters())[name].detach().clone())

    ema = EMA(decay=0.5)
    tiny.train(module, steps, [See(), ema])
    wanted = 0.5 * (0.5 * seen[0] + 0.5 * seen[1]) + 0.5 * seen[2]
    torch.testing.assert_close(dict(module.model.named_parameters())[name].detach(), wanted)
    assert int(module.model.get_buffer("count")) == 63


def test_the_csv_keeps_rows_and_grows_columns(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.csv")
    first = CSVLog(path)
    for step in (1, 2, 3):
        first.log_metrics({"a": step}, step)
    second = CSVLog(path)
    second.log_metrics({"a": 20, "b": 1.5}, 2)
    assert second.rows() == [{"step": "1", "a": "1", "b": ""}, {"step": "2", "a": "20", "b": "1.5"}]
