"""Music as sound: frames of a codec under the delay pattern, after an optional caption."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modalities.base import Batch, Loss, Modality, Raw, Step, Tokens, cat_tokens, pad_rows
from modalities.codecs.base import Codec
from modalities.codecs.delay import revert_delay
from modalities.codecs.files import resample
from modalities.codecs.frames import CodecFrames
from modalities.music.modality import Music
from modalities.text.borrowing import BorrowsText


class CodecMusic(Music, BorrowsText):
    """A row is the text's bos, the caption's ids, then codec frames delayed as in UniMoE-Audio (arXiv 2510.13344).

    The loss counts frames (cross-entropy averaged over codebooks). The caption is read, not scored.
    """

    unit = "code"

    def __init__(
        self, dim: int, codec: Codec, delays: Sequence[int], length: int, drop: float, text: Modality | None
    ) -> None:
        super().__init__()
        self.codec, self.length, self.drop, self.symbols = codec, length, drop, codec.size
        self.seconds = 1 / codec.frame_rate
        self.frames = CodecFrames(dim, codec.codebooks, codec.size, delays)
        self.borrow(text, dim)

    def fit(self, examples: Iterable[Raw]) -> None:
        """Fits the codec to the recordings, where there is something to fit."""
        if not bool(self.codec.fitted):
            self.codec.fit(self._wave(raw) for raw in examples)

    def example(self, raw: Raw) -> dict[str, Tensor]:
        """{"audio": float [n], "rate": int, "text": optional str} to `rows` [R, C] and `caption` [n] (bos first)."""
        codes = self.codec.encode(self._wave(raw)).cpu()
        return {"rows": self.frames.delayed(codes), "caption": self._ids(raw.get("text") or "")}

    def _wave(self, raw: Raw) -> Tensor:
        audio, rate = np.asarray(raw["audio"]), int(raw["rate"])
        if audio.ndim != 1 or audio.dtype.kind != "f":
            raise ValueError(
                f"audio: got {audio.dtype} of shape {list(audio.shape)}, expected floats in -1..1 of shape [samples]; "
                "average the channels of a stereo recording"
            )
        return resample(torch.from_numpy(audio).float(), rate, self.codec.rate)

    def _ids(self, text: str) -> Tensor:
        tokenizer = self.text.tokenizer
        return torch.tensor([tokenizer.bos, *tokenizer.encode(text)])

    def collate(self, examples: Sequence[Mapping[str, Tensor]], generator: torch.Generator) -> Batch:
        """Random crops of `length` frames (and the one that follows)."""
        rows = []
        for example in examples:
            spare = max(len(example["rows"]) - 1 - self.length, 0)
            start = int(torch.randint(spare + 1, (), generator=generator))
            rows.append({**example, "rows": example["rows"][start : start + self.length + 1]})
        return self.stack(rows)

    def stack(self, rows: Sequence[Mapping[str, Tensor]]) -> Batch:
        """To frames [B, S + 1, C] and caption [B, N], each with its mask."""
        frames, real = pad_rows([row["rows"] for row in rows], self.frames.pad)
        caption, read = pad_rows([row["caption"] for row in rows], self.text.tokenizer.pad)
        return {"rows": frames, "mask": real[:, 1:], "caption": caption, "caption_mask": read}

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Drops whole captions with probability `drop`, so that guidance has a model without one."""
        kept = torch.rand(len(batch["caption"]), generator=generator) >= self.drop
        mask = batch["caption_mask"] & kept.to(batch["caption_mask"].device).unsqueeze(1)
        mask[:, 0] = True  # bos stays
        return {**batch, "caption_mask": mask}

    def pieces(self, example: Mapping[str, Tensor]) -> np.ndarray:
        """The codes [frames, C], the delay taken out."""
        return revert_delay(example["rows"][1:], self.frames.delays).numpy()

    def windows(self, example: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Rows of `length` frames and the one that follows, under the same caption. The end is no code: not scored."""
        rows = example["rows"].where(example["rows"] != self.frames.eos, self.frames.pad)
        starts = range(0, len(rows) - 1, self.length)
        return [{**example, "rows": rows[s : s + self.length + 1]} for s in starts]

    def _prompt(self, caption: Tensor, mask: Tensor) -> Tokens:
        """Captions [B, N] as tokens; frames go on counting from the last real one, so padding moves nothing."""
        place = torch.arange(caption.shape[1], device=caption.device).expand(caption.shape)
        return Tokens(embedding=self.text.embed(caption), mask=mask, position=place.unsqueeze(-1))

    def encode(self, batch: Batch) -> Tokens:
        """Caption, then frames: [B, N + S, D]."""
        prompt = self._prompt(batch["caption"], batch["caption_mask"])
        rows = batch["rows"][:, :-1]
        first = batch["caption_mask"].sum(1, keepdim=True)
        place = first + torch.arange(rows.shape[1], device=rows.device)
        frames = Tokens(embedding=self.frames.embed(rows), mask=batch["mask"], position=place.unsqueeze(-1))
        return cat_tokens([prompt, frames])

    def decode(self, hidden: Tokens) -> Tensor:
        """Logits [B, S, C, size + 3] of the frame that follows."""
        return self.frames.logits(hidden.embedding)

    def loss(self, hidden: Tokens, batch: Batch) -> Loss:
        """Cross-entropy of the frames to come, the caption's places left out."""
        return self.frames.loss(hidden.embedding[:, batch["caption"].shape[1] :], batch["rows"][:, 1:])

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Frames to predict, and tokens of captions and frames."""
        return self.frames.count(batch["rows"][:, 1:]), batch["caption_mask"].sum() + batch["mask"].sum()

    @torch.no_grad()
    def compose(
        self,
        step: Step,
        steps: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        text: str = "",
        top_k: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Codes [C, frames] of at most `steps` frames, for the caption `text`.

        `guidance` s writes from cond + s (cond - uncond), the sheet's form: 0 changes nothing, music there uses 10.
        """
        if steps < 1:
            raise ValueError(f"steps: got {steps}, expected at least 1 (a codec frame each)")
        captions = [self._ids(text)] if guidance is None else [self._ids(text), self._ids("")]
        if generator is None:
            raise ValueError("generator: none given, expected a torch.Generator")
        caption, mask = (t.to(self.frames.table.weight.device) for t in pad_rows(captions, self.text.tokenizer.pad))
        return self.frames.generate(
            step,
            self._prompt(caption, mask),
            generator,
            frames=steps,
            temperature=temperature,
            top_k=top_k,
            guidance=guidance,
            least=steps // 2 + 1,
        )[0].cpu()

    def sound(self, piece: Tensor) -> tuple[np.ndarray, int]:
        """Codes [C, frames] decoded by the codec; what would clip is scaled down."""
        audio = self.codec.decode(piece.to(self.codec.fitted.device)).cpu().numpy()
        return audio / max(1.0, float(np.abs(audio).max())), self.codec.rate
