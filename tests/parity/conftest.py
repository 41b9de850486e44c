"""Tiny random models of transformers beside what we make of their files.

A file in tests/parity/families names a family: BASE holds the fields of a tiny model beyond TINY (`...` takes one of
those away), after those of the family LIKE where it names one; VARIANTS maps a name to the fields that differ. It may
define `unused(name, fields)` for tensors that a peer saves without ever reading them, and `complete(folder)`, which
adds what a peer does not open a folder without.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.models.unified import Unified

HERE = Path(__file__).parent / "families"
TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """A variant of a family: the fields of its tiny model."""

    family: str
    name: str
    fields: dict[str, Any]
    table: ModuleType

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"

    def unused(self, name: str) -> bool:
        """Whether a tensor is one that the peer saves but need not read."""
        return bool(getattr(self.table, "unused", lambda name, fields: False)(name, self.fields))


@dataclass(frozen=True)
class Pair:
    """A model of transformers in evaluation mode, its folder, what zoo.load makes of that, and the peer's logits of a
    batch without and with its mask (taken first: a peer with dynamic rotary positions remembers what it has seen)."""

    case: Case
    peer: Any
    folder: Path
    ours: Unified
    whole: Tensor
    padded: Tensor


def table_of(family: str) -> ModuleType:
    """The file of a family."""
    found = importlib.util.spec_from_file_location(f"parity_{family}", HERE / f"{family}.py")
    assert found is not None and found.loader is not None
    table = importlib.util.module_from_spec(found)
    found.loader.exec_module(table)
    return table


def cases() -> Iterator[Case]:
    for family in sorted(path.stem for path in HERE.glob("*.py")):
        table = table_of(family)
        like = table_of(table.LIKE).BASE if hasattr(table, "LIKE") else {}
        for name, fields in table.VARIANTS.items():
            yield Case(family, name, {**TINY, **like, **table.BASE, **fields}, table)


@pytest.fixture(scope="session")
def build(run: Any, batch: tuple[Tensor, Tensor]) -> Callable[[Case, Path], Pair]:
    """Makes the pair of a case in a folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

    def make(case: Case, folder: Path) -> Pair:
        fields = {key: value for key, value in case.fields.items() if value is not ...}
        config = transformers.AutoConfig.for_model(case.family, **fields)
        with torch.random.fork_rng(devices=[]):
            peer = transformers.AutoModelForCausalLM.from_config(config).eval()
            draw(peer, case.unused)
        peer.generation_config.eos_token_id = None
        peer.save_pretrained(folder)
        ids, mask = batch
        return Pair(case, peer, folder, zoo.load(folder), run(peer, ids, torch.ones_like(mask)), run(peer, ids, mask))

    return make


@pytest.fixture(scope="session")
def run() -> Callable[[Any, Tensor, Tensor], Tensor]:
    """The logits of a peer for padded rows."""

    def answer(peer: Any, ids: Tensor, mask: Tensor) -> Tensor:
        position = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            return peer(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).logits

    return answer


@pytest.fixture(scope="module", params=list(cases()), ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, build: Any) -> Pair:
    return build(request.param, tmp_path_factory.mktemp(str(request.param)))


@torch.no_grad()
def draw(model: nn.Module, keeps: Callable[[str], bool] = lambda name: False) -> None:
    """Random weights of a size that lets every one matter: norms away from 1, biases away from 0. Tensors whose name
    `keeps` are left as they are."""
    generator = torch.Generator().manual_seed(0)
    for name, value in [*model.named_parameters(), *stored_buffers(model)]:
        if keeps(name):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(noise if "embed" in name else noise / math.sqrt(value.shape[-1]))
        else:
            value.copy_(0.3 * noise + (1 if "norm" in name and name.endswith("weight") else 0))


def stored_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Floating-point buffers that are part of the checkpoint."""
    kept = model.state_dict().keys()
    return [(name, value) for name, value in model.named_buffers() if name in kept and value.is_floating_point()]


@pytest.fixture(scope="session")
def batch() -> tuple[Tensor, Tensor]:
    """Ids [3, 20] and their mask, two rows padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 61, (3, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    mask[2, :11] = 0
    return ids, mask
