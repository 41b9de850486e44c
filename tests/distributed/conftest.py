"""Two processes as two ranks, and the program they run as a module."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
SECONDS = 110


@pytest.fixture(scope="session")
def program() -> Callable[[str], Any]:
    """NAME -> the program NAME.py beside this file, as a module."""

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def launch() -> Callable[[str, Path], list[dict[str, Any]]]:
    """(NAME, FOLDER) -> what `NAME.py RANK PORT FOLDER`, run as two ranks of one thread, left in FOLDER/rankN.pt."""

    def run(name: str, folder: Path) -> list[dict[str, Any]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        ranks = []
        for rank in range(2):
            command = [sys.executable, str(HERE / f"{name}.py"), str(rank), str(port), str(folder)]
            with (folder / f"log{rank}").open("w") as log:
                ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(timeout=SECONDS) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        assert codes == [0, 0], "\n".join((folder / f"log{rank}").read_text()[-3000:] for rank in range(2))
        return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]

    return run
