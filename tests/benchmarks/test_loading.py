"""The benchmark of loading runs, and what it says of memory holds: a model's size and little more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "loading.py"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_loading_takes_no_more_anonymous_memory_than_the_model(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--parameters", "6e7", "--stored", "bfloat16", "--dtype", "float32"]
    env = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=110)
    assert done.returncode == 0, done.stderr
    rows = {line[:16].strip(): line[16:].split() for line in done.stdout.splitlines()[2:]}
    assert set(rows) == {"zoo", "zoo, own format", "transformers"}
    for name in ("zoo", "zoo, own format"):
        assert float(rows[name][3]) <= 1.15, done.stdout  # of the model, the largest tensor not counted
