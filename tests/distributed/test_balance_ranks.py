"""Every layer over two gloo processes with unequal shares gives the loss, gradients and bias of one process."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("balance_worker", HERE / "balance_worker.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks found; one process group runs all cases."""
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "balance_worker.py")]
    started = [
        subprocess.Popen([*command, str(rank), str(port), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in started:
        try:
            _, errors = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            for each in started:
                each.kill()
            raise
        assert process.returncode == 0, errors.decode()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_equal_one_process(worker: ModuleType, ranks: list[dict[str, Any]]) -> None:
    cases = worker.cases()
    assert len(cases) > 50 and set(ranks[0]) == {*(case.name for case in cases), "accumulated"}
    for case in cases:
        alone = worker.optimiser_step(case, None)
        for rank in ranks:
            torch.testing.assert_close(
                rank[case.name], alone, atol=1e-7, rtol=1e-7, msg=lambda m, c=case: f"{c.name}: {m}"
            )


def test_counts_over_ranks_and_micro_batches_are_those_of_the_whole_batch(
    worker: ModuleType, ranks: list[dict[str, Any]]
) -> None:
    """scope: global at the last micro-batch of each rank."""
    alone = worker.accumulated(None)
    for rank in ranks:
        torch.testing.assert_close(rank["accumulated"]["counts"], alone["counts"], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(rank["accumulated"]["loss"], alone["loss"], atol=1e-7, rtol=1e-7)


def test_a_mean_over_unequal_ranks_would_be_wrong(worker: ModuleType) -> None:
    """The comparison can fail: the shares of the two ranks differ."""
    case = next(case for case in worker.cases() if case.name == "router top_k")
    parts = [worker.part(case, rank) for rank in range(2)]
    assert [int(p.mask.sum()) for p in parts] == [6, 15]
