"""The benchmark of the first token runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "first_token.py"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_it_times_the_command_beside_its_floor(tmp_path: Path) -> None:
    words = ["--quick", "--without", "transformers", "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(PROGRAM), *words], capture_output=True, text=True, env=env, timeout=110)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["floor", "zoo"]
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert all(row[kind] > 0 for rows in found["rounds"].values() for row in rows for kind in ("wall", "cpu"))
