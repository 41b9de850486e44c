"""Bits per byte on held-out text, beside a byte bigram fitted on the training text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modalities.base import Raw, Score, Step
from modalities.text.files import write_text
from modalities.text.module import Text
from modalities.text.sampling import Sampling

START = 256


@dataclass(frozen=True)
class Window:
    """Ids read together; those before `scored` are context only. `before` is the byte in front of the scored part."""

    ids: list[int]
    scored: int
    before: int


def documents(raws: Sequence[Raw]) -> list[str]:
    """Raw examples as whole texts: pieces with `ends: False` are joined to what follows."""
    out: list[str] = []
    open_ = False
    for raw in raws:
        if open_:
            out[-1] += raw["text"]
        else:
            out.append(raw["text"])
        open_ = not raw.get("ends", True)
    return out


def windows(text: Text, raws: Sequence[Raw], limit: int | None) -> list[Window]:
    """Windows of `length` ids every `length / 2`, so that each id is scored once, with context wherever there is any.

    `limit` keeps that many, evenly spaced.
    """
    length = text.spec.length
    out: list[Window] = []
    for document in documents(raws):
        ids = text.tokenizer.encode(document)
        for start in range(0, max(len(ids) - length // 2, 1), length // 2):
            scored = 0 if start == 0 else length - length // 2
            context = text.tokenizer.to_bytes(ids[: start + scored][-8:])
            row = ids[start : start + length]
            if len(row) > scored:
                out.append(Window(row, scored, context[-1] if context else START))
    if limit is not None and limit < len(out):
        out = [out[i] for i in np.linspace(0, len(out) - 1, limit).round().astype(int)]
    return out


@torch.no_grad()
def bits(text: Text, new_step: Callable[[], Step], held: Sequence[Window], rows: int = 16) -> float:
    """Bits the model needs for the scored ids of all windows."""
    total, device = 0.0, text.embedding.weight.device
    for first in range(0, len(held), rows):
        part = held[first : first + rows]
        batch = text.batch([torch.tensor(w.ids) for w in part])
        for row, window in enumerate(part):
            batch["target"][row, : window.scored] = -100
        batch = {k: v.to(device) for k, v in batch.items()}
        total += float(text.loss(new_step()(text.encode(batch)), batch).total)
    return total / math.log(2)


def bigram(train: Sequence[Raw], smoothing: float = 0.1) -> np.ndarray:
    """Bits [257, 256] of a byte given the byte before it (256: the start of a text), from counts + `smoothing`."""
    counts = np.full((257, 256), smoothing)
    for document in documents(train):
        data = np.frombuffer(document.encode("utf-8", errors="replace"), np.uint8).astype(np.int64)
        if len(data):
            counts[START, data[0]] += 1
            np.add.at(counts, (data[:-1], data[1:]), 1)
    return -np.log2(counts / counts.sum(1, keepdims=True))


def evaluate(
    modality: Text,
    new_step: Callable[[], Step],
    train: Sequence[Raw],
    test: Sequence[Raw],
    *,
    generator: torch.Generator,
    out: Path | None = None,
    limit: int | None = None,
) -> list[Score]:
    """Bits per byte of the model and of the bigram, over the same held-out bytes; `limit` bounds the windows read.

    Writes `text.txt`, a continuation of the first held-out line, to the folder `out`.
    Raises ValueError where the test texts are empty.
    """
    held = windows(modality, test, limit)
    scored = [(w.before, modality.tokenizer.to_bytes(w.ids[w.scored :])) for w in held]
    count = sum(len(data) for _, data in scored)
    if not count:
        raise ValueError("test: the held-out texts hold no bytes, expected at least one")
    table = bigram(train)
    baseline = 0.0
    for before, data in scored:
        path = [before, *data]
        baseline += float(table[path[:-1], path[1:]].sum())
    value = bits(modality, new_step, held) / count
    if out is not None:
        prompt = test[0]["text"].splitlines()[0][:64] + "\n"
        sampling = Sampling(max_new_tokens=modality.spec.length * 2, temperature=0.8, top_k=40)
        ids = modality.sample(new_step(), prompt, sampling, generator=generator)
        write_text(Path(out) / "text.txt", prompt + modality.texts(ids)[0] + "\n")
    note = f"{count} bytes in {len(held)} windows of {modality.spec.length}; baseline: byte bigram"
    return [Score("bits per byte", value, baseline / count, higher=False, unit="bits per byte", note=note)]
