"""Two ranks on the CPU: the same gradients as one, skipped steps, resuming, sharding. One pair of processes for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CASES = [f"{balance}-{spread}" for balance in ("none", "sequence", "global_exact") for spread in ("same", "different")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks leave what they find."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(launch: Callable[[str, Path], list[dict[str, Any]]], folder: Path) -> list[dict[str, Any]]:
    return launch("worker", folder)


@pytest.fixture(scope="module")
def worker(program: Callable[[str], Any]) -> Any:
    return program("worker")


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_gradients_of_one(case: str, found: Any, worker: Any, tmp_path: Path) -> None:
    h, balance = worker.helpers(), case.split("-")[0]
    module = h.build_module(h.tiny_spec(worker.BALANCE[balance], bias=balance == "global_exact"), clip=None)
    kept: list[dict[str, torch.Tensor]] = []
    h.train(module, [h.build_steps(module, worker.WHOLE)], tmp_path, [h.keep_gradients(kept)])
    for rank in range(2):
        gradients = found[rank][case]["gradients"]
        assert gradients.keys() == kept[0].keys()
        for name, value in kept[0].items():
            torch.testing.assert_close(gradients[name], value, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    if balance == "global_exact":
        assert torch.equal(found[0][case]["bias"], module.model.moe_layers()[0].router.bias)
        assert torch.equal(found[0][case]["bias"], found[1][case]["bias"])


def test_a_spike_on_one_rank_is_left_out_on_both(found: Any) -> None:
    first, second = (result["spiked"] for result in found)
    assert first["skipped"] == second["skipped"] == [20] and first["figures"] == second["figures"]
    assert first["waiting"] == second["waiting"] == 2  # what waits is gathered over ranks for the checkpoint
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())


def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_both(found: Any) -> None:
    first, second = (result["skipped"] for result in found)
    assert first["done"] == second["done"] == 2 and first["skipped"] == second["skipped"] == 1
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]) and bool(torch.isfinite(value.float()).all()), name


def test_a_resumed_run_of_two_ranks_is_bit_equal(found: Any) -> None:
    for rank in range(2):
        whole, resumed = found[rank]["whole"], found[rank]["resumed"]
        assert whole["done"] == resumed["done"] == 4
        assert all(torch.equal(v, resumed["state"][k]) for k, v in whole["state"].items())
    assert all(torch.equal(v, found[1]["whole"]["state"][k]) for k, v in found[0]["whole"]["state"].items())


def test_averaged_weights_are_the_same_on_all_ranks(found: Any) -> None:
    first, second = (result["averaged"]["state"] for result in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, found[0]["whole"]["state"][name]) for name, value in first.items())


def test_reports_cover_all_ranks(found: Any) -> None:
    first, second = (result["whole"]["scalars"] for result in found)
    clock = {"tokens_per_second"}
    assert {k: v for k, v in first.items() if k not in clock} == {k: v for k, v in second.items() if k not in clock}
    assert "train/text/loss" in first and "train/time_series/loss" in first


def test_sharding_changes_nothing_and_resumes(folder: Path, found: Any) -> None:
    for rank in range(2):
        plain, sharded = found[rank]["whole"], found[rank]["fsdp"]
        assert sharded["done"] == 4
        for name, value in plain["state"].items():
            torch.testing.assert_close(sharded["state"][name], value, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: n + m)
    assert sorted(p.name for p in (folder / "fsdp").iterdir()) == ["last.ckpt", "metrics.csv"]
    assert (folder / "fsdp" / "last.ckpt" / "meta.pt").exists()
