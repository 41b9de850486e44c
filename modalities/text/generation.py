"""The loop that continues rows of ids, the same for samples, streams and texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modalities.base import Batch, Step, Tokens
from modalities.text.sampling import Sampling, draw
from modalities.text.writer import Writer

if TYPE_CHECKING:
    from modalities.text.continuing import Continuing


@torch.no_grad()
def continued(
    text: Continuing,
    step: Step,
    given: Batch,
    sampling: Sampling,
    generator: torch.Generator | None,
    writers: Sequence[Writer],
    prefill_chunk: int | None,
) -> Iterator[Tensor]:
    """See Continuing.extend. `writers`, one per row or none, are pushed every id before it is yielded."""
    if prefill_chunk is not None and prefill_chunk < 1:
        raise ValueError(f"prefill_chunk: got {prefill_chunk}, expected at least 1")
    device, pad, ends = text.embedding.weight.device, text.tokenizer.pad, text.ends(sampling)
    tokens = _tokens(given, device)
    seen = _seen(tokens, text.embedding.num_embeddings) if sampling.repetition_penalty != 1 else None
    hidden = _prefill(text, step, tokens, prefill_chunk)
    position = tokens["position"][:, -1:]
    done = [False] * len(position)
    for left in range(sampling.max_new_tokens, 0, -1):
        drawn = draw(text.logits(hidden), sampling, generator, text.tokenizer.never, seen).tolist()
        for row, token in enumerate(drawn):
            if done[row]:
                drawn[row] = pad
            else:
                done[row] = token in ends or (bool(writers) and writers[row].push(token))
        new = torch.tensor(drawn)
        yield new
        if left == 1 or all(done):
            return
        position, new = position + 1, new.view(-1, 1).to(device)
        if seen is not None:
            seen.scatter_(1, new, True)
        hidden = step(Tokens(embedding=text.embed(new), position=position, ids=new)).embedding[:, -1]


def _tokens(given: Batch, device: torch.device) -> Batch:
    """On the device; without a mask where nothing is padded, so that attention needs none either."""
    mask = given.get("mask")
    plain = mask is None or bool(mask.all())
    return {k: v.to(device) for k, v in given.items() if not (plain and k == "mask")}


def _seen(given: Batch, size: int) -> Tensor:
    """[B, V], True for the ids of each prompt."""
    ids = given["ids"]
    rows = torch.zeros(len(ids), size + 1, dtype=torch.bool, device=ids.device)  # padding marks the column behind
    rows.scatter_(1, ids if "mask" not in given else ids.masked_fill(~given["mask"], size), True)
    return rows[:, :size].contiguous()


def _prefill(text: Continuing, step: Step, given: Batch, chunk: int | None) -> Tensor:
    """The last hidden state [B, D] of the prompts, fed `chunk` positions at a time; None for all at once."""
    length = given["ids"].shape[1]
    hidden = None
    for start in range(0, length, chunk or length):
        part = {name: value[:, start : start + (chunk or length)] for name, value in given.items()}
        embedding = text.embed(part["ids"])
        fed = Tokens(embedding=embedding, mask=part.get("mask"), position=part["position"], ids=part["ids"])
        hidden = step(fed).embedding[:, -1]
    assert hidden is not None, "a prompt holds at least one id"
    return hidden
