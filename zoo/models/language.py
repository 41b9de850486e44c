"""The language-model side of a model with text: logits for ids, and generated text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from modalities.base import Step, Tokens
from modalities.text.module import IGNORE, Text
from zoo.backbone.cache import Cache
from zoo.models.answering import Answering, evaluating
from zoo.moe.record import LayerRecord

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # how a byte tokenizer shows the first bytes of a character


@dataclass(frozen=True)
class LanguageOutput:
    """What a text model answers.

    logits         [B, S, V] of the id after each position
    loss           mean cross entropy over the labels in nats, None without labels
    hidden_states  outputs of all blocks [B, S, D] and the final normed state, where asked for
    cache          the cache that was given, now holding these tokens too
    records        routing and statistics of each MoE layer
    """

    logits: Tensor
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cache: Cache | None = None
    records: tuple[LayerRecord, ...] = ()


def as_tokens(text: Text, ids: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tokens:
    """ids [B, S] as tokens. attention_mask, 1 on real ids, is [B, S], or [B, past + S] where a cache holds the past.

    Positions count real ids, so rows may be padded on either side.
    Raises ValueError on a wrong shape and on ids outside the vocabulary.
    """
    ids = checked(text, ids)
    past = 0 if cache is None else cache.length
    if attention_mask is None:
        if not past:
            return Tokens(embedding=text.embed(ids), ids=ids)
        attention_mask = torch.ones_like(ids)  # the past may hold padding, which positions leave out
    if tuple(attention_mask.shape) not in {(len(ids), ids.shape[1]), (len(ids), past + ids.shape[1])}:
        raise ValueError(
            f"attention_mask: got shape {list(attention_mask.shape)}, expected {list(ids.shape)}"
            + (f" or {[len(ids), past + ids.shape[1]]} with the {past} ids in the cache" if past else "")
        )
    mask = attention_mask.bool()[:, -ids.shape[1] :].to(ids.device)
    position = mask.cumsum(1) - 1
    if cache is not None and past:
        position = position + cache.real()
    return Tokens(embedding=text.embed(ids), mask=mask, position=position.clamp(min=0).unsqueeze(-1), ids=ids)


def checked(text: Text, ids: Tensor) -> Tensor:
    """ids [B, S] as int64 on the model's device. Raises ValueError on a wrong shape and on ids that there are none."""
    if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids: got {ids.dtype} {list(ids.shape)}, expected integers [batch, length]")
    _check_range(ids, text.embedding.num_embeddings)
    return ids.long().to(text.embedding.weight.device)


def _check_range(ids: Tensor, size: int) -> None:
    """Ids on the CPU only: reading them from a device would wait for it, and a compiled graph would break."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if not 0 <= low <= high < size:
        raise ValueError(f"input_ids: got ids {low}..{high}, expected 0..{size - 1}")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels [B, S] that are not -100; position i is scored on label i + 1. 0 where there is none."""
    target = labels[:, 1:].to(logits.device)
    count = (target != IGNORE).sum().clamp(min=1)
    flat = logits[:, :-1].float().flatten(0, 1)
    return F.cross_entropy(flat, target.flatten(), ignore_index=IGNORE, reduction="sum") / count


def continue_ids(
    text: Text,
    step: Step,
    ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Yields the id [B] after unpadded rows of ids [B, S], then the one after it, until all rows have drawn eos."""
    ids = checked(text, ids)
    if not ids.shape[1]:
        raise ValueError(f"input_ids: got shape {list(ids.shape)}, expected [batch, length] with a length of 1 or more")
    position = torch.arange(ids.shape[1], device=ids.device).view(1, -1, 1).expand(len(ids), -1, -1)
    yield from text.extend(
        step, {"ids": ids, "position": position}, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
        top_p=top_p, generator=generator,
    )  # fmt: skip


def pieces(text: Text, ids: Iterator[Tensor]) -> Iterator[str]:
    """The text of a stream of one row's ids, piece by piece; a character that is not complete waits for its rest."""
    drawn: list[int] = []
    shown = 0
    for new in ids:
        if int(new[0]) == text.tokenizer.eos:
            break
        drawn.append(int(new[0]))
        whole = text.tokenizer.decode(drawn)
        if not whole.endswith(UNFINISHED) and len(whole) > shown:
            yield whole[shown:]
            shown = len(whole)
    rest = text.tokenizer.decode(drawn)[shown:]
    if rest:
        yield rest


@torch.inference_mode()
def read_text(model: Answering, text: str, rows: int = 8) -> None:
    """Runs a text of any length through the model, cut into rows of the length it trains on; for traces."""
    name = model.find("text")
    module = cast(Text, model.modalities[name])
    ids = module.example({"text": text})["ids"].split(module.spec.length)
    with evaluating(model):
        for start in range(0, len(ids), rows):
            batch = module.batch(ids[start : start + rows])
            device = module.embedding.weight.device
            model.run(module.encode({key: value.to(device) for key, value in batch.items()}), name)
