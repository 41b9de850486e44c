"""Packed weights: other strides, the same shapes, names, answers and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.hub import memory

IDS = torch.arange(3, 15).view(2, 6)


@pytest.mark.parametrize("shape", [(5,), (6, 4), (3, 6, 4), (2, 3, 6, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_put_copies_into_either_order(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain, packed = memory.room(shape, dtype), memory.room(shape, dtype, packed=len(shape) > 1)
    memory.put(value, plain)
    memory.put(value, packed)
    assert plain.is_contiguous() and torch.equal(plain, value.to(dtype)) and torch.equal(packed, plain)
    assert len(shape) == 1 or packed.mT.is_contiguous()


@pytest.mark.parametrize("dense", [False, True])
def test_a_packed_checkpoint_answers_and_exports_the_same(write: Any, tmp_path: Path, dense: bool) -> None:
    folder = write(dense=dense).folder
    plain: Any = zoo.load(folder)
    packed: Any = zoo.load(folder, pack=True)
    assert torch.allclose(plain(IDS).logits, packed(IDS).logits, atol=1e-6)
    assert plain.generate(IDS, max_new_tokens=5, temperature=0).equal(
        packed.generate(IDS, max_new_tokens=5, temperature=0)
    )
    names = memory.packable(packed)
    assert "backbone.blocks.0.attention.q.weight" in names
    assert all(p.mT.is_contiguous() == (n in names) for n, p in packed.named_parameters() if p.dim() > 1)
    zoo.export(packed, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_embeddings_that_are_heads_too_stay_as_they_are(write: Any) -> None:
    model: Any = zoo.load(write(tie_word_embeddings=True).folder, pack=True)
    assert model.modalities["text"].embedding.weight.is_contiguous()


def test_a_packed_model_learns_and_is_saved_as_any_other(write: Any, tmp_path: Path) -> None:
    both: list[Any] = [zoo.load(write().folder, pack=pack).train() for pack in (False, True)]
    model, packed = both
    for each in both:
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.1)
        each(IDS, labels=IDS).loss.backward()
        optimizer.step()
    for (name, mine), other in zip(packed.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-5), name
    again: Any = zoo.load(zoo.save(packed, tmp_path / "saved"), pack=True)
    assert torch.equal(again(IDS).logits, packed.eval()(IDS).logits)
    assert again.backbone.blocks[0].ffn.experts.down.mT.is_contiguous()


def test_packing_elsewhere_is_refused(write: Any) -> None:
    with pytest.raises(ValueError, match="pack: got weights on meta, expected a model on the CPU"):
        zoo.load(write().folder, device="meta", pack=True)
