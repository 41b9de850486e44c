"""A run that was killed goes on as if it had not been, and its checkpoints survive."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from training.checkpoint_io import AtomicCheckpointIO
from training.run import fit
from training.sources import build_data

BALANCE = [
    {"type": "switch", "scope": "global", "weight": 0.1, "final": 0.01, "anneal": 8},
    {"type": "bias", "weight": 0.01},
]


class Kill(L.Callback):
    """Ends the process, nearly, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if pl_module.done == self.step:
            raise SystemExit("killed")


def run(tiny: Any, folder: Path, callbacks: Any = (), **settings: Any) -> tuple[Any, list[dict[str, str]]]:
    module = tiny.module(tiny.spec(BALANCE, bias=True, gate={"jitter": 0.1}), schedule="cosine", warmup=2, seed=7)
    data = build_data({"sources": tiny.sources(), "micro_batches": 2, "seed": 7, "eval_batches": 1})
    options = {"max_steps": 10, "log_every": 1, "save_every": 3, "ema": 0.8, "progress": False, "tensorboard": False}
    fit(module, data, folder=folder, callbacks=callbacks, **{**options, **settings})
    with (folder / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    return module, [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.mark.parametrize(("save_every", "killed"), [(3, 8), (4, 9), (5, 2)])
def test_a_killed_run_goes_on_bit_equal(tiny: Any, tmp_path: Path, save_every: int, killed: int) -> None:
    options = {"val_every": 4, "save_every": save_every}
    whole, rows = run(tiny, tmp_path / "whole", **options)
    with pytest.raises(SystemExit):
        run(tiny, tmp_path / "cut", [Kill(killed)], **options)
    resumed, again = run(tiny, tmp_path / "cut", **options)
    assert rows == again and len([r for r in rows if r["train/text/loss"]]) == 10
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    first, second = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("whole", "cut"))
    assert first["training"] == second["training"] == {"done": 10, "skipped": 0, "fitted": ["text", "time_series"]}
    assert first["optimizer_states"][0]["state"].keys() == second["optimizer_states"][0]["state"].keys()
    for name, value in first["current_model_state"].items():
        assert torch.equal(value, second["current_model_state"][name]), name


def test_a_finished_run_is_left_as_it_is(tiny: Any, tmp_path: Path) -> None:
    first, rows = run(tiny, tmp_path, max_steps=3)
    second, again = run(tiny, tmp_path, max_steps=3)
    assert rows == again
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_a_folder_with_a_run_is_not_overwritten(tiny: Any, tmp_path: Path) -> None:
    run(tiny, tmp_path, max_steps=2)
    with pytest.raises(FileExistsError, match="--ckpt_path auto"):
        run(tiny, tmp_path, max_steps=2, resume=False)


def test_the_checkpoint_holds_the_average_and_plain_types(tiny: Any, tmp_path: Path) -> None:
    from training.module import UnifiedModule

    module, _ = run(tiny, tmp_path, max_steps=3)
    loaded = torch.load(tmp_path / "last.ckpt", weights_only=True)
    average, current = loaded["state_dict"], loaded["current_model_state"]
    assert any(not torch.equal(average[k], current[k]) for k in average)
    assert all(torch.equal(v, average[k]) for k, v in module.state_dict().items())  # training ends with the average
    again = UnifiedModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(v, average[k]) for k, v in again.state_dict().items()) and again.done == 3


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def full(value: Any, handle: Any) -> None:
        handle.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("code ran",)

    io = AtomicCheckpointIO()
    torch.save({"x": Evil()}, tmp_path / "evil.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "evil.ckpt").read_bytes()[:100])
    for name in ("evil.ckpt", "cut.ckpt"):
        with pytest.raises(ValueError, match=name):
            io.load_checkpoint(tmp_path / name, weights_only=False)
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(tmp_path / "none.ckpt")
