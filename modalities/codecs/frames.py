"""Codec frames in a model: summed tables, one head for all codebooks, loss and sampling under a delay pattern.

Source: UniMoE-Audio (arXiv 2510.13344) and its released code: vocabulary size + 3 per channel (EOS, PAD, BOS), tables
summed, one linear head, only channel 0 may end, then a countdown ends channel c d_c rows later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.base import Loss, Step, Tokens, cat_tokens
from modalities.codecs.delay import apply_delay, revert_delay


class CodecFrames(nn.Module):
    """Embeds and predicts rows [B, R, C] of delayed codes. `delays` are frames per codebook, the first one 0."""

    def __init__(self, dim: int, codebooks: int, size: int, delays: Sequence[int]) -> None:
        super().__init__()
        if len(delays) != codebooks or delays[0] != 0 or min(delays) < 0:
            raise ValueError(f"delays: got {list(delays)}, expected {codebooks} numbers >= 0, the first one 0")
        self.codebooks, self.size, self.delays = codebooks, size, tuple(delays)
        self.eos, self.pad, self.bos, self.vocab = size, size + 1, size + 2, size + 3
        self.table = nn.Embedding(codebooks * self.vocab, dim)
        self.head = nn.Linear(dim, codebooks * self.vocab, bias=False)
        nn.init.normal_(self.table.weight, std=0.02 / codebooks**0.5)
        nn.init.normal_(self.head.weight, std=0.02)
        self.register_buffer("offset", torch.arange(codebooks) * self.vocab, persistent=False)

    @staticmethod
    def parameters_of(dim: int, codebooks: int, size: int) -> int:
        """Number of parameters for a trunk of width `dim`."""
        return 2 * dim * codebooks * (size + 3)

    def delayed(self, codes: Tensor) -> Tensor:
        """Codes [C, T] as a codec gives them to delayed rows [T + max(d) + 1, C], the first all BOS."""
        return apply_delay(codes.T, self.delays, self.bos, self.eos, self.pad)

    def embed(self, rows: Tensor) -> Tensor:
        """Rows [B, R, C] to [B, R, D]: the sum over the codebooks' tables."""
        offset: Tensor = self.get_buffer("offset")
        return self.table(rows + offset).sum(2)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [.., D] to float32 logits [.., C, size + 3]."""
        return self.head(hidden).float().unflatten(-1, (self.codebooks, self.vocab))

    def loss(self, hidden: Tensor, targets: Tensor) -> Loss:
        """Cross-entropy of hidden [B, R, D] against the rows to come [B, R, C].

        Summed over frames and averaged over codebooks; BOS and PAD, which sampling forces, are no targets. `count` is
        the number of target codes divided by C.
        """
        wanted = torch.where(targets <= self.eos, targets, -100)
        each = F.cross_entropy(self.logits(hidden).flatten(0, 2), wanted.flatten(), reduction="sum", ignore_index=-100)
        return Loss(each / self.codebooks, self.count(targets))

    def count(self, targets: Tensor) -> Tensor:
        """Of rows to come [B, R, C]: the number of codes that are targets, divided by C."""
        return (targets <= self.eos).sum() / self.codebooks

    @torch.no_grad()
    def generate(
        self,
        step: Step,
        prompt: Tokens,
        generator: torch.Generator,
        *,
        frames: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        guidance: float | None = None,
        least: int = 1,
        ends: Literal["drawn", "likeliest"] = "drawn",
    ) -> list[Tensor]:
        """Samples codes [C, T_b] for each row of a prompt, least <= T_b <= frames.

        step         incremental: sees the prompt with the first (all-BOS) row, then one row at a time
        prompt       [B, S]; with `guidance` its rows are interleaved (conditioned, unconditioned, conditioned ...)
        temperature  0 takes the most likely code
        guidance     s of logits = cond + s * (cond - uncond): 0 is none, 1 the paper's setting for speech
        ends         a row ends when channel 0 draws EOS, or (the paper's code) only where EOS is its likeliest symbol,
                     which small models, unsure of the code, hardly ever reach
        """
        pairs = 1 if guidance is None else 2
        batch, device = prompt.shape[0] // pairs, prompt.embedding.device
        deep = max(self.delays)
        end = torch.full((batch,), frames, device=device)  # T_b, once channel 0 has ended
        rows = [torch.full((batch, self.codebooks), self.bos, device=device)]
        tokens = self._append(prompt, rows[0].repeat_interleave(pairs, 0))
        position = _next_position(prompt)
        for r in range(1, frames + deep + 1):
            logits = self.logits(step(tokens).embedding[:, -1])
            if guidance is not None:
                logits = logits[0::2] + guidance * (logits[0::2] - logits[1::2])
            row = self._draw(logits, temperature, top_k, generator)
            if r > least:
                row[:, 0] = torch.where(self._stops(logits[:, 0], ends, generator), self.eos, row[:, 0])
            ended = (row[:, 0] == self.eos) & (end == frames)
            end = torch.where(ended & (r - 1 < end), r - 1, end)
            rows.append(self._forced(row, r, end))
            if r >= int(end.max()) + deep:
                break
            position = position + 1
            tokens = Tokens(
                embedding=self.embed(rows[-1][:, None].repeat_interleave(pairs, 0)), position=position[:, None, None]
            )
        codes = revert_delay(torch.stack(rows[1:], dim=1), self.delays)
        return [code[:length].T for code, length in zip(codes, end.tolist(), strict=True)]

    def _append(self, prompt: Tokens, row: Tensor) -> Tokens:
        """The prompt with one more token, the embedded row [B, C]."""
        place = _next_position(prompt)[:, None, None]
        return cat_tokens([prompt, Tokens(embedding=self.embed(row[:, None]), position=place)])

    def _draw(self, logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
        """Logits [B, C, V] to codes [B, C], without EOS, PAD and BOS."""
        codes = logits[..., : self.size]
        if temperature == 0:
            return codes.argmax(-1)
        if top_k is not None and top_k < self.size:
            codes = codes.masked_fill(codes < codes.topk(top_k, dim=-1).values[..., -1:], -torch.inf)
        chance = (codes / temperature).softmax(-1).flatten(0, 1).cpu()
        return torch.multinomial(chance, 1, generator=generator).view(codes.shape[:2]).to(codes.device)

    def _stops(self, logits: Tensor, ends: str, generator: torch.Generator) -> Tensor:
        """Logits [B, V] of channel 0 to whether each row ends here [B]."""
        logits = logits[:, : self.eos + 1]
        likeliest = logits.argmax(-1) == self.eos
        if ends == "likeliest":
            return likeliest
        chance = logits.softmax(-1)[:, self.eos].cpu()
        return (torch.rand(chance.shape, generator=generator) < chance).to(likeliest.device)

    def _forced(self, row: Tensor, r: int, end: Tensor) -> Tensor:
        """Row number r of the pattern with what is no choice put in: BOS before a channel starts, EOS and PAD after."""
        frame = r - 1 - torch.tensor(self.delays, device=row.device)  # frame shown by each channel
        row = torch.where(frame < 0, self.bos, row)
        row = torch.where(frame == end[:, None], self.eos, row)
        return torch.where(frame > end[:, None], self.pad, row)


def _next_position(prompt: Tokens) -> Tensor:
    """[B]: the rotary position after the last real token of each row."""
    batch, length = prompt.shape
    if prompt.position is None:
        return torch.full((batch,), length, device=prompt.embedding.device)
    place = prompt.position.amax(-1)
    if prompt.mask is not None:
        place = place.masked_fill(~prompt.mask, -1)
    return place.amax(1) + 1
