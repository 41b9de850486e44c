"""The language-model side of a model with text: ids to tokens, states to logits and losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor

from modalities.base import Batch, Tokens
from modalities.text.cross_entropy import IGNORE
from modalities.text.module import Text
from zoo.backbone.cache import Cache
from zoo.models.answering import Answering, evaluating
from zoo.moe.record import LayerRecord

INTEGERS = (torch.int64, torch.int32)
Ids = Tensor | np.ndarray | Sequence[Sequence[int]]  # whole numbers [batch, length]


@dataclass(frozen=True)
class LanguageOutput:
    """What a text model answers.

    state          final normed states [B, S, D]
    head           the map from states to logits [B, S, V]
    computed       the logits where they were computed on the way: always without labels
    loss           mean cross entropy over the labels in nats, None without labels
    hidden_states  embeddings [B, S, D], then what each block answers, the last one's normed; where asked for. One more
                   than there are blocks, as in transformers
    cache          the cache that was given, now holding these tokens too
    records        routing and statistics of each MoE layer
    """

    state: Tensor
    head: Callable[[Tensor], Tensor]
    computed: Tensor | None = None
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cache: Cache | None = None
    records: tuple[LayerRecord, ...] = ()

    @cached_property
    def logits(self) -> Tensor:
        """[B, S, V] of the id after each position, differentiable. A loss needs none of them, so with labels they are
        computed when first read; read them before the backward pass, and before parameters change."""
        return self.head(self.state) if self.computed is None else self.computed


def as_tensor(name: str, given: Ids) -> Tensor:
    """What a caller gives as `name`, as a tensor: lists of lists and arrays are taken too.

    Raises ValueError where rows differ in length, TypeError where it holds no numbers.
    """
    if isinstance(given, Tensor):
        return given
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(
            f"{name}: rows differ in length; expected [batch, length], short rows padded on the left and 0 there in "
            "attention_mask"
        ) from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: got {type(given).__name__} of {array.dtype}, expected whole numbers [batch, length]")
    return torch.tensor(array.astype(np.int64) if array.dtype.kind in "iu" else array)


def as_tokens(text: Text, ids: Ids, attention_mask: Ids | None, cache: Cache | None) -> Tokens:
    """ids [B, S] as tokens. attention_mask, 1 on real ids, is [B, S], or [B, past + S] where a cache holds the past.

    Positions count real ids, so rows may be padded on either side.
    Raises ValueError on a wrong shape, on ids outside the vocabulary, and on a mask of other numbers than 0 and 1.
    """
    ids = checked(text, ids)
    mask = None if attention_mask is None else _mask(ids, attention_mask, 0 if cache is None else cache.length)
    past = 0 if cache is None else cache.real()
    if mask is None and isinstance(past, int):
        return Tokens(embedding=text.embed(ids), ids=ids)  # positions follow from the cache
    count = torch.ones_like(ids) if mask is None else mask
    position = (count.cumsum(1) - 1 + past).clamp(min=0).unsqueeze(-1)
    return Tokens(embedding=text.embed(ids), mask=mask, position=position, ids=ids)


def _mask(ids: Tensor, given: Ids, past: int) -> Tensor | None:
    """The mask [B, S] of the new ids; None where it can be seen at no cost that they are all real, since attention
    then needs none either."""
    mask = _checked_mask(ids, given, past)[:, -ids.shape[1] :]
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return mask.to(ids.device)


def _checked_mask(ids: Tensor, given: Ids, past: int = 0) -> Tensor:
    """An attention mask for ids [B, S] as bool [B, S] or [B, past + S]. Raises ValueError on any other shape, and on
    numbers other than 0 and 1 (an additive mask, for one); these are looked for on the CPU only."""
    mask = as_tensor("attention_mask", given)
    if tuple(mask.shape) not in {(len(ids), ids.shape[1]), (len(ids), past + ids.shape[1])}:
        raise ValueError(
            f"attention_mask: got shape {list(mask.shape)}, expected {list(ids.shape)}"
            + (f" or {[len(ids), past + ids.shape[1]]} with the {past} ids in the cache" if past else "")
        )
    if mask.dtype != torch.bool and mask.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = mask[(mask != 0) & (mask != 1)]
        if len(wrong):
            raise ValueError(f"attention_mask: holds {wrong[0].item()}, expected 1 on real ids and 0 on padding")
    return mask.bool()


def checked(text: Text, given: Ids) -> Tensor:
    """ids [B, S] as int64 on the model's device. Raises ValueError on a wrong shape and on ids that there are none."""
    ids = as_tensor("input_ids", given)
    if ids.ndim != 2 or ids.dtype not in INTEGERS:
        raise ValueError(f"input_ids: got {ids.dtype} {list(ids.shape)}, expected integers [batch, length]")
    _check_range("input_ids", ids, text.embedding.num_embeddings)
    return ids.long().to(text.embedding.weight.device)


def _check_range(name: str, ids: Tensor, size: int) -> None:
    """Ids on the CPU only: reading them from a device would wait for it, and a compiled graph would break."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if not 0 <= low <= high < size:
        raise ValueError(f"{name}: got ids {low}..{high}, expected 0..{size - 1}")


def mean_cross_entropy(text: Text, state: Tensor, given: Ids) -> Tensor:
    """Mean over the labels [B, S] that are not -100; position i is scored on label i + 1. 0 where there is none.

    Raises ValueError on a wrong shape or type, and on labels that are neither ids nor -100.
    """
    labels = as_tensor("labels", given)
    if labels.shape != state.shape[:2] or labels.dtype not in INTEGERS:
        raise ValueError(f"labels: got {labels.dtype} {list(labels.shape)}, expected integers {list(state.shape[:2])}")
    _check_range("labels", labels.masked_fill(labels == IGNORE, 0), text.embedding.num_embeddings)
    target = labels[:, 1:].to(state.device)
    total, _ = text.cross_entropy(state[:, :-1], target)
    return total / (target != IGNORE).sum().clamp(min=1)


def as_prompt(text: Text, given: Ids, attention_mask: Ids | None) -> Batch:
    """Ids [B, S] and their mask [B, S] (1 on real ids, padding on the left) as `Text.extend` takes prompts.

    Raises ValueError where there is nothing to continue, or padding stands where the continuation begins.
    """
    ids = checked(text, given)
    if not ids.numel():
        raise ValueError(f"input_ids: got shape {list(ids.shape)}, expected [batch, length] of 1 or more each")
    if attention_mask is None:
        return text.given(ids)
    mask = _checked_mask(ids, attention_mask).to(ids.device)
    if not bool(mask[:, -1].all()):
        raise ValueError("attention_mask: a row ends with padding; expected rows padded on the left")
    return text.given(ids, mask)


@torch.inference_mode()
def read_text(model: Answering, text: str, rows: int = 8, most: int | None = None) -> None:
    """Runs a text of any length through the model, cut into rows of the length it trains on, `rows` at a time and no
    more than `most` of them; for traces."""
    name = model.find("text")
    module = cast(Text, model.modalities[name])
    ids = module.example({"text": text})["ids"].split(module.spec.length)[:most]
    with evaluating(model):
        for start in range(0, len(ids), rows):
            batch = module.batch(ids[start : start + rows])
            device = module.embedding.weight.device
            model.run(module.encode({key: value.to(device) for key, value in batch.items()}), name)
