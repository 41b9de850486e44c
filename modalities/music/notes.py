"""Symbolic music: one token per sixteenth note, four voices in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from modalities.base import Batch, Loss, Raw, Step, Tokens, pad_rows
from modalities.music.modality import Music
from modalities.music.note_head import NoteHead
from modalities.music.score import BAR, OLDEST, PITCHES, REST, START, VOICES, check_notes, readings, transpose
from modalities.music.synth import RATE, TEMPO, synthesise

LEAP = 13  # changes beyond an octave share one entry


class NoteMusic(Music):
    """Four voices per sixteenth as one token, so that a bar is 16 tokens and harmony lies within a token.

    A token's embedding sums, per voice, the pitch, how it changed and for how long it has been held, and the place in
    the bar of the step to come; `NoteHead` then writes that step voice by voice. The loss counts notes (voice-steps).
    """

    unit, symbols, seconds = "note", PITCHES, 15 / TEMPO

    def __init__(self, dim: int, length: int, transpose_by: int) -> None:
        super().__init__()
        self.length, self.transpose_by = length, transpose_by
        self.pitch = nn.Parameter(torch.randn(VOICES, PITCHES + 1, dim) * 0.02)
        self.change = nn.Parameter(torch.randn(VOICES, 2 * LEAP + 1, dim) * 0.02)
        self.age = nn.Parameter(torch.randn(VOICES, OLDEST + 1, dim) * 0.02)
        self.beat = nn.Embedding(BAR, dim)
        nn.init.normal_(self.beat.weight, std=0.02)
        self.head = NoteHead(dim)

    @staticmethod
    def parameters_of(dim: int) -> int:
        """Number of parameters for a trunk of width `dim`."""
        tables = VOICES * ((PITCHES + 1) + (2 * LEAP + 1) + (OLDEST + 1)) + BAR
        return tables * dim + NoteHead.parameters_of(dim)

    def example(self, raw: Raw) -> dict[str, Tensor]:
        """{"notes": int [T, 4]} to `readings` with the steps to be written as `target` [T, 4]."""
        notes = torch.from_numpy(check_notes(raw["notes"]))
        return {name: rows[:-1] for name, rows in readings(notes).items()} | {"target": notes}

    def collate(self, examples: Sequence[Mapping[str, Tensor]], generator: torch.Generator) -> Batch:
        """Random crops of `length` steps, each moved to a random key within `transpose_by` semitones."""
        return self.stack([self._move(self._crop(e, generator), generator) for e in examples])

    def stack(self, rows: Sequence[Mapping[str, Tensor]]) -> Batch:
        """Rows as `example` gives them to a batch [B, S, ...] with its `mask`."""
        batch = {name: pad_rows([row[name] for row in rows])[0] for name in rows[0]}
        return batch | {"mask": pad_rows([row["target"] for row in rows])[1]}

    def pieces(self, example: Mapping[str, Tensor]) -> np.ndarray:
        """The notes [T, 4]."""
        return example["target"].numpy()

    def windows(self, example: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Rows of `length` steps after one another."""
        starts = range(0, len(example["target"]), self.length)
        return [{name: value[s : s + self.length] for name, value in example.items()} for s in starts]

    def _crop(self, example: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        spare = max(len(example["target"]) - self.length, 0)
        start = int(torch.randint(spare + 1, (), generator=generator))
        return {name: rows[start : start + self.length] for name, rows in example.items()}

    def _move(self, example: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        shift = int(torch.randint(-self.transpose_by, self.transpose_by + 1, (), generator=generator))
        pitches = torch.cat([example["input"], example["previous"], example["target"]])
        pitches = pitches[(pitches > REST) & (pitches < START)]
        if len(pitches):
            shift = min(max(shift, 1 - int(pitches.min())), PITCHES - 1 - int(pitches.max()))
        return {k: transpose(v, shift) if k in ("input", "previous", "target") else v for k, v in example.items()}

    def encode(self, batch: Batch) -> Tokens:
        """`readings` in rows [B, S, 4] (`beat` [B, S]) to tokens [B, S, D]."""
        voice = torch.arange(VOICES, device=batch["input"].device)
        change = (batch["input"] - batch["previous"]).clamp(-LEAP, LEAP) + LEAP
        parts = self.pitch[voice, batch["input"]] + self.change[voice, change] + self.age[voice, batch["age"]]
        embedding = parts.sum(dim=2) + self.beat(batch["beat"])
        return Tokens(embedding=embedding, mask=batch["mask"])

    def decode(self, hidden: Tokens) -> Tensor:
        """What the head writes a step from, [B, S, D]; `head.logits` turns it into pitches voice by voice."""
        out: Tensor = self.head.context(hidden.embedding)
        return out

    def loss(self, hidden: Tokens, batch: Batch) -> Loss:
        """Nats over the notes of the steps that are not padding, rests included."""
        real = batch["mask"]
        nats = self.head.losses(self.decode(hidden)[real], batch["input"][real], batch["target"][real])
        return Loss(total=nats.sum(), count=real.sum() * VOICES)

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Notes, and steps."""
        return batch["mask"].sum() * VOICES, batch["mask"].sum()

    @torch.no_grad()
    def compose(
        self,
        step: Step,
        steps: int,
        *,
        seed: Tensor | None = None,
        temperature: float = 1.0,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Notes [T, 4] int64: `seed` [T0, 4], an opening from the first beat where given, and `steps` new steps.

        `temperature` 0 takes the likeliest pitches; `top_p` cuts each voice's choice to its nucleus.
        """
        if steps < 1:
            raise ValueError(f"steps: got {steps}, expected at least 1 (a sixteenth note each)")
        notes = torch.zeros(0, VOICES, dtype=torch.int64)
        if seed is not None:
            notes = torch.from_numpy(check_notes(seed.cpu().numpy(), "seed"))
        device = self.pitch.device
        fed = 0
        for _ in range(steps):
            rows = {name: value[None, fed:].to(device) for name, value in readings(notes).items()}
            place = torch.arange(fed, len(notes) + 1, device=device).view(1, -1, 1)
            rows["mask"] = torch.ones(place.shape[:2], dtype=torch.bool, device=device)
            hidden = step(self.encode(rows).replace(position=place))
            context = self.decode(hidden)[:, -1]
            written = self.head.write(context, rows["input"][:, -1], temperature, top_p, generator)
            fed = len(notes) + 1
            notes = torch.cat([notes, written])
        return notes

    def sound(self, piece: Tensor) -> tuple[np.ndarray, int]:
        """Notes [T, 4] synthesised: 15 / tempo seconds a step."""
        return synthesise(piece.numpy()), RATE
