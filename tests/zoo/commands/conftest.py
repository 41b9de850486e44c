"""Running the command in this process, and tiny public checkpoints for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo import cli

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., Path]

TEXT = {"type": "text", "tie": False, "length": 32}


def description(ffn: Mapping[str, Any], **attention: Any) -> dict[str, Any]:
    """A language model of two blocks and width 16 over bytes."""
    block = {"type": "sequential", "attention": {"heads": 4, "kv_heads": 2, **attention}, "ffn": dict(ffn)}
    return {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {"text": dict(TEXT)},
    }


MOE = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": {"type": "top_k", "k": 2}}
DENSE = {"type": "dense", "hidden": 24}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line: (exit status, standard output, standard error)."""

    def ran(*words: object) -> tuple[int, str, str]:
        status = cli.main([str(w) for w in words])
        out, err = capsys.readouterr()
        return status, out, err

    return ran


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """The message of a command line that is an error."""

    def message(*words: object) -> str:
        status, out, err = run(*words)
        assert status == 2 and not out and err.startswith("zoo: error: ") and "Traceback" not in err
        return err.removeprefix("zoo: error: ").strip()

    return message


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a random Mixtral (or Llama) as a public checkpoint, with fields of its config.json changed."""

    def written(name: str = "source", dense: bool = False, shard: int | None = None, **fields: Any) -> Path:
        model = zoo.create(description(DENSE if dense else MOE), seed=0)
        folder = zoo.export(model, tmp_path / name, max_shard_size=shard)
        path = folder / "config.json"
        content = json.loads(path.read_text(encoding="utf-8")) | fields
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}), "utf-8")
        return folder

    return written


@pytest.fixture
def spoil() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Changes the tensors of a folder with one file."""
    from safetensors.torch import load_file, save_file

    def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
        tensors = load_file(folder / "model.safetensors")
        how(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change
