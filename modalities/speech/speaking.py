"""The task text to recording: [speaker] [text] [AUDIO_START] [delayed codec rows], predicting the row to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modalities.base import Batch, Loss, Tokens, cat_tokens, pad_rows

if TYPE_CHECKING:
    from modalities.speech.module import Speech


class Speaking:
    """Rows that speak. Owns no weights: those of the modality are used."""

    def __init__(self, owner: Speech) -> None:
        self._owner = owner

    def collate(self, examples: Sequence[Mapping[str, Tensor]], generator: torch.Generator) -> Batch:
        """said_ids [B, L] with mask, said_speaker [B], said_rows [B, R, C] (all BOS first, PAD behind the end).

        Hides speakers and texts in the shares that the spec names: a hidden text has no real token.
        """
        spec, frames = self._owner.spec, self._owner.frames
        ids, mask = pad_rows([e["ids"] for e in examples], self._owner.text.tokenizer.pad)
        rows, _ = pad_rows([e["rows"] for e in examples], frames.pad)
        speaker = torch.stack([e["speaker"] for e in examples])
        chance = torch.rand(2, len(examples), generator=generator)
        return {
            "said_ids": ids,
            "said_mask": mask & (chance[0] >= spec.drop_text)[:, None],
            "said_speaker": speaker.masked_fill(chance[1] < spec.drop_speaker, 0),
            "said_rows": rows,
        }

    def encode(self, batch: Batch) -> Tokens:
        """[B, 1 + L + 1 + R - 1]: all rows but the last are input, all but the first are targets."""
        prompt = self._prompt(batch["said_speaker"], batch["said_ids"], batch["said_mask"])
        rows = batch["said_rows"][:, :-1]
        mask = self._wanted(batch)
        position = batch["said_mask"].sum(1)[:, None] + 2 + torch.arange(rows.shape[1], device=rows.device)
        return cat_tokens(
            [prompt, Tokens(embedding=self._owner.frames.embed(rows), mask=mask, position=position[..., None])]
        ).replace(**self._causal(prompt, rows))

    def loss(self, hidden: Tensor, batch: Batch) -> Loss:
        """Cross-entropy of the codes, in nats, averaged over codebooks and summed over frames."""
        begin, targets = batch["said_ids"].shape[1] + 2, batch["said_rows"][:, 1:]
        return self._owner.frames.loss(hidden[:, begin : begin + targets.shape[1]], targets)

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Frames to predict, and all real tokens: voice, text, start and frames."""
        prompt = batch["said_mask"].sum() + 2 * len(batch["said_mask"])
        return self._owner.frames.count(batch["said_rows"][:, 1:]), prompt + self._wanted(batch).sum()

    def prompt(self, texts: Sequence[str], voices: Sequence[int], *, twice: bool) -> Tokens:
        """[B, 1 + L + 1]; with `twice` each row is followed by the same row without its text."""
        device, tokenizer = self._owner.start.device, self._owner.text.tokenizer
        if not texts or not all(texts):
            raise ValueError(f"texts: got {list(texts)}, expected at least one text and none of them empty")
        ids, mask = pad_rows([torch.tensor(tokenizer.encode(t)) for t in texts], tokenizer.pad)
        speaker = torch.tensor(list(voices))
        if twice:
            ids, speaker = ids.repeat_interleave(2, 0), speaker.repeat_interleave(2, 0)
            mask = torch.stack([mask, torch.zeros_like(mask)], dim=1).flatten(0, 1)
        with torch.no_grad():
            return self._prompt(speaker.to(device), ids.to(device), mask.to(device))

    def _prompt(self, speaker: Tensor, ids: Tensor, mask: Tensor) -> Tokens:
        owner, batch = self._owner, len(ids)
        first, start = owner.voices(speaker)[:, None], owner.start.expand(batch, 1, -1)
        embedding = torch.cat([first, owner.text.embed(ids), start.to(first.dtype)], dim=1)
        ones = torch.ones(batch, 1, dtype=torch.bool, device=ids.device)
        real = torch.cat([ones, mask, ones], dim=1)
        blank = torch.full((batch, 1), -1, device=ids.device)
        return Tokens(
            embedding=embedding,
            mask=real,
            position=(real.cumsum(1) - 1)[..., None],
            ids=torch.cat([blank, ids.masked_fill(~mask, -1), blank], dim=1),
        )

    def _wanted(self, batch: Batch) -> Tensor:
        """[B, R - 1]: rows that have a code to predict."""
        return (batch["said_rows"][:, 1:] <= self._owner.frames.eos).any(-1)

    def _causal(self, prompt: Tokens, rows: Tensor) -> dict[str, Tensor]:
        """The span fields that rows of the other task need beside them."""
        shape = (rows.shape[0], prompt.shape[1] + rows.shape[1])
        return {
            "span": torch.zeros(shape, dtype=torch.int64, device=rows.device),
            "bidirectional": torch.zeros(shape, dtype=torch.bool, device=rows.device),
        }
