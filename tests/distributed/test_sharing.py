"""Routers that share a part over layers, sharded over two gloo processes: the gradients of one process."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("sharing_worker.py")


def load() -> Any:
    spec = importlib.util.spec_from_file_location("sharing_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks found; one process group runs all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(WORKER)]
    started = [
        subprocess.Popen([*command, str(rank), str(port), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in started:
        try:
            _, errors = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            for each in started:
                each.kill()
            raise
        assert process.returncode == 0, errors.decode()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("gate", "recompute"), worker.CASES)
def test_two_sharded_ranks_equal_one_process(gate: str, recompute: bool, ranks: list[dict[str, Any]]) -> None:
    alone = worker.steps(gate, recompute, None)
    for rank in ranks:
        for step, expected in zip(rank[f"{gate}, {recompute}"], alone, strict=True):
            assert step.keys() >= expected.keys() and any(".gate." in name for name in expected)
            for name, value in step.items():
                other = expected.get(name, torch.zeros_like(value))
                torch.testing.assert_close(value, other, atol=1e-5, rtol=1e-4, msg=name)
