"""The fused Triton path: what needs no Triton here, the kernels in Triton's interpreter in a process of its own.

The interpreter is chosen when Triton is imported, so the tests of triton_cases.py cannot share this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.moe.kernels.triton import available, choose
from zoo.moe.kernels.triton.settings import HALF, SHARED_MEMORY, SINGLE, tiling

ROOT = Path(__file__).resolve().parents[4]
BF16, F32 = torch.bfloat16, torch.float32


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    cases = Path(__file__).with_name("triton_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_nothing_of_triton_is_imported_before_it_is_used() -> None:
    check = (
        "import sys, torch; before = 'triton' in sys.modules\n"
        "import zoo.moe.kernels.triton as fused; fused.available(torch.device('cpu'))\n"
        "assert ('triton' in sys.modules) == before\n"
        "assert 'zoo.moe.kernels.triton.ops' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_a_cpu_without_the_interpreter_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not available(torch.device("cpu"))


@pytest.mark.parametrize(
    ("rows", "experts", "dim", "hidden", "dtype", "path"),
    [
        (16384, 8, 4096, 14336, BF16, "grouped_mm"),  # big products: the GEMM decides
        (65536, 64, 2048, 1408, BF16, "fused"),  # fine-grained: the traffic around it
        (16384, 8, 4096, 14336, F32, "fused"),  # grouped_mm would loop and synchronise
        (16384, 8, 4100, 14336, BF16, "fused"),  # rows that do not start at 16 bytes
        (2, 8, 4096, 14336, BF16, "fused"),  # decoding
        (4096, 128, 4096, 14336, BF16, "fused"),  # 32 rows per expert
    ],
)
def test_the_path_is_chosen_by_shape(
    rows: int, experts: int, dim: int, hidden: int, dtype: torch.dtype, path: str
) -> None:
    assert choose(rows, experts, dim, hidden, dtype) == path


def test_tiles_grow_with_the_rows_of_an_expert() -> None:
    assert [tiling(rows, 8, BF16).rows for rows in (0, 8, 128, 136, 512, 520, 10**6)] == [16, 16, 16, 64, 64, 128, 128]
    assert [tiling(rows, 8, F32).rows for rows in (8, 128, 136, 10**6)] == [16, 16, 64, 64]


@pytest.mark.parametrize(("table", "size"), [(HALF, 2), (SINGLE, 4)])
def test_pipeline_stages_fit_into_shared_memory(table: dict, size: int) -> None:
    for cut in table.values():
        two = [(cut.rows + 2 * cut.up.columns, cut.up)]
        one = [(cut.rows + tile.columns, tile) for tile in (cut.scatter, cut.hidden)]
        for height, tile in [*two, *one, (cut.outer.left + cut.outer.right, cut.outer)]:
            stages = tile.stages - (tile is cut.outer)  # one stage holds only the rows' indices
            assert height * tile.depth * size * stages <= SHARED_MEMORY
