"""Tiny public checkpoints, written without the library they come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zoo.hub import skeleton
from zoo.hub.conversion.checkpoint import describe, full

FIELDS: dict[str, Any] = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 16, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3,
    "num_experts_per_tok": 2, "vocab_size": 40, "max_position_embeddings": 64, "rope_theta": 1e4,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
EXPERTS = ("num_local_experts", "num_experts_per_tok")


class Checkpoint:
    """A folder with config.json and model.safetensors, which tests spoil."""

    def __init__(self, folder: Path, fields: dict[str, Any]) -> None:
        self.folder = folder
        self.fields = dict(fields)
        family, spec = describe(fields, folder / "config.json")
        state = skeleton.build(spec.build).state_dict()
        generator = torch.Generator().manual_seed(0)
        self.tensors = {
            piece.theirs: torch.randn(piece.form(state), generator=generator) / 4
            for piece in family.rules(full(spec), family.layouts[0])
            if not piece.again
        }
        self.write()

    def write(self) -> None:
        (self.folder / "config.json").write_text(json.dumps(self.fields), encoding="utf-8")
        save_file(self.tensors, self.folder / "model.safetensors", metadata={"format": "pt"})

    def shard(self) -> None:
        """Two files and an index in place of one."""
        names = sorted(self.tensors)
        parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for file, held in parts.items():
            save_file({name: self.tensors[name] for name in held}, self.folder / file)
        self.index({name: file for file, held in parts.items() for name in held})
        (self.folder / "model.safetensors").unlink()

    def index(self, weight_map: dict[str, str]) -> None:
        content = json.dumps({"metadata": {}, "weight_map": weight_map})
        (self.folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Checkpoint]:
    """Writes a Mixtral, or with `dense=True` a Llama, with these fields changed (`...` takes one away)."""

    def make(dense: bool = False, **changes: Any) -> Checkpoint:
        base = {k: v for k, v in FIELDS.items() if k not in EXPERTS} | LLAMA if dense else FIELDS
        fields = {k: v for k, v in {**base, **changes}.items() if v is not ...}
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        return Checkpoint(folder, fields)

    return make
