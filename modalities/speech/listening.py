"""The task recording to text: [features, seen in both directions] [BOS text], predicting [text EOS]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from modalities.base import Batch, Loss, Step, Tokens, cat_tokens, pad_rows

if TYPE_CHECKING:
    from modalities.speech.module import Speech


class Listening:
    """Rows that transcribe. Owns no weights: those of the modality are used."""

    def __init__(self, owner: Speech) -> None:
        self._owner = owner

    def collate(self, examples: Sequence[Mapping[str, Tensor]]) -> Batch:
        """heard_features [B, F, mels] with mask, heard_ids [B, L] = BOS text, heard_target [B, L] = text EOS."""
        tokenizer = self._owner.text.tokenizer
        features, mask = pad_rows([e["features"] for e in examples])
        bos, eos = torch.tensor([tokenizer.bos]), torch.tensor([tokenizer.eos])
        ids, _ = pad_rows([torch.cat([bos, e["ids"]]) for e in examples], tokenizer.pad)
        target, _ = pad_rows([torch.cat([e["ids"], eos]) for e in examples], -100)
        return {"heard_features": features, "heard_mask": mask, "heard_ids": ids, "heard_target": target}

    def encode(self, batch: Batch) -> Tokens:
        """[B, S + L]: feature tokens of one bidirectional span, then the causal text."""
        heard = self._features(batch["heard_features"], batch["heard_mask"])
        return cat_tokens([heard, self._text(heard, batch["heard_ids"], batch["heard_target"] >= 0)])

    def loss(self, hidden: Tensor, batch: Batch) -> Loss:
        """Cross-entropy of the text and its end, in nats, summed over tokens. hidden [B, S, D], padding at the end."""
        target = batch["heard_target"]
        begin = self._length(batch["heard_features"].shape[1])
        logits = self._owner.text.logits(hidden[:, begin : begin + target.shape[1]]).float()
        total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum", ignore_index=-100)
        return Loss(total, (target >= 0).sum())

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Text tokens and ends to write, and all real tokens: subsampled features and text."""
        text = (batch["heard_target"] >= 0).sum()
        return text, batch["heard_mask"][:, :: self._owner.spec.subsample].sum() + text

    @torch.no_grad()
    def sample(self, step: Step, waves: Sequence[Tensor], longest: int) -> list[str]:
        """Greedy texts of waveforms [n]."""
        text, device = self._owner.text, self._owner.start.device
        features, mask = pad_rows([self._owner.features.extract(w.to(device)) for w in waves])
        heard = self._features(features, mask.to(device))
        ids = torch.full((len(waves), 1), text.tokenizer.bos, device=device)
        tokens = cat_tokens([heard, self._text(heard, ids, torch.ones_like(ids, dtype=torch.bool))])
        place = tokens.position[:, -1:] if tokens.position is not None else ids[..., None]
        drawn: list[Tensor] = []
        done = torch.zeros_like(ids, dtype=torch.bool)
        while len(drawn) < longest and not bool(done.all()):
            logits = text.logits(step(tokens).embedding[:, -1:]).float()
            logits[..., [text.tokenizer.bos, text.tokenizer.pad]] = -torch.inf
            ids = logits.argmax(-1).masked_fill(done, text.tokenizer.eos)
            drawn.append(ids)
            done = done | (ids == text.tokenizer.eos)
            place = place + 1
            tokens = Tokens(embedding=text.embed(ids), position=place, ids=ids)
        rows = torch.cat(drawn, dim=1).tolist()
        ends = [row.index(text.tokenizer.eos) if text.tokenizer.eos in row else len(row) for row in rows]
        return [text.tokenizer.decode(row[:end]) for row, end in zip(rows, ends, strict=True)]

    def _features(self, frames: Tensor, mask: Tensor) -> Tokens:
        embedding, mask = self._owner.features(frames, mask)
        blank = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
        return Tokens(
            embedding=embedding,
            mask=mask,
            position=torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)[..., None],
            span=blank,
            bidirectional=torch.ones_like(mask),
            ids=blank - 1,
        )

    def _text(self, heard: Tokens, ids: Tensor, mask: Tensor) -> Tokens:
        """Text after features of unequal length: positions go on at each row's own end."""
        length = heard.mask.sum(1) if heard.mask is not None else torch.full_like(ids[:, 0], heard.shape[1])
        position = length[:, None] + torch.arange(ids.shape[1], device=ids.device)
        return Tokens(embedding=self._owner.text.embed(ids), mask=mask, position=position[..., None], ids=ids)

    def _length(self, frames: int) -> int:
        """Tokens of so many input frames."""
        return -(-frames // self._owner.spec.subsample)
