"""Routers that share a part over layers, sharded over two gloo processes: the gradients of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def worker(program: Callable[[str], Any]) -> Any:
    return program("sharing_worker")


@pytest.fixture(scope="module")
def ranks(
    launch: Callable[[str, Path], list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What both ranks found; one process group runs all cases."""
    return launch("sharing_worker", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("gate", "recompute"), [("recurrent", False), ("warmed up", True), ("pre-gated", False)])
def test_two_sharded_ranks_equal_one_process(
    gate: str, recompute: bool, worker: Any, ranks: list[dict[str, Any]]
) -> None:
    alone = worker.steps(gate, recompute, None)
    for rank in ranks:
        for step, expected in zip(rank[f"{gate}, {recompute}"], alone, strict=True):
            assert step.keys() >= expected.keys() and any(".gate." in name for name in expected)
            for name, value in step.items():
                other = expected.get(name, torch.zeros_like(value))
                torch.testing.assert_close(value, other, atol=1e-5, rtol=1e-4, msg=name)
