"""Every layer over two gloo processes with unequal shares gives the loss, gradients and bias of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def worker(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("balance_worker")


@pytest.fixture(scope="module")
def ranks(
    launch: Callable[[str, Path], list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What both ranks found; one process group runs all cases."""
    return launch("balance_worker", tmp_path_factory.mktemp("ranks"))


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
