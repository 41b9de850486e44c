"""Positions that jump on the way: text continued with a cache is that of full passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import zoo
from zoo.models.unified import Unified

LIMIT = 16
IDS = torch.randint(3, 40, (2, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, :4] = 0


@pytest.fixture(scope="module")
def longrope() -> Unified:
    """A small model whose positions turn otherwise beyond LIMIT, with a head that lets positions matter."""
    scaling = {"type": "longrope", "short": [1.0, 1.2, 1.5, 2.0], "long": [1.0, 3.0, 6.0, 9.0], "context": LIMIT}
    block = {"type": "sequential", "attention": {"heads": 2, "scale": 2.0}, "ffn": {"type": "dense", "hidden": 24}}
    text = {"type": "text", "tie": False, "tokenizer": {"type": "files", "vocab_size": 40}}
    backbone = {"dim": 16, "rope": {"scaling": scaling}, "layers": [{"repeat": 2, "block": block}]}
    return zoo.create({"type": "unified", "backbone": backbone, "modalities": {"text": text}}).eval()


@torch.no_grad()
def full_passes(model: Unified, ids: Tensor, mask: Tensor, count: int) -> Tensor:
    for _ in range(count):
        new = model(ids, attention_mask=mask).logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    return ids


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("prompt", [10, 20])
def test_cached_decoding_beyond_the_jump_is_that_of_full_passes(
    longrope: Unified, prompt: int, chunk: int | None
) -> None:
    ids, mask = torch.cat([IDS, IDS], 1)[:, :prompt], torch.cat([MASK, torch.ones_like(MASK)], 1)[:, :prompt]
    found = longrope.generate(ids, attention_mask=mask, max_new_tokens=14, temperature=0, eos=(), prefill_chunk=chunk)
    assert torch.equal(found, full_passes(longrope, ids, mask, 14))


def test_a_cache_by_itself_keeps_what_was_turned_before(longrope: Unified) -> None:
    ids, cache = torch.cat([IDS, IDS], 1), longrope.new_cache()
    with torch.no_grad():
        longrope(ids[:, :10], cache=cache)
        last = longrope(ids[:, 10:], cache=cache).logits
        assert not torch.allclose(last, longrope(ids).logits[:, 10:], atol=1e-3)
