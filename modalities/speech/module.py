"""The speech modality: both tasks on one row layout each, mixed within a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from modalities.base import Batch, Loss, Modality, Raw, Step, Tokens
from modalities.codecs.files import resample
from modalities.codecs.frames import CodecFrames
from modalities.speech.features import Features
from modalities.speech.listening import Listening
from modalities.speech.rows import stack_rows
from modalities.speech.speaking import Speaking
from modalities.speech.spec import SpeechSpec
from modalities.speech.voices import Voices
from modalities.text.borrowing import BorrowsText

FITTED_ON = 2000  # recordings that statistics and codebooks are fitted on


@dataclass(frozen=True)
class Spoken:
    """A spoken text: `audio` [n] float32 at `rate` samples per second, from `codes` [C, T]."""

    audio: Tensor
    codes: Tensor
    rate: int


class Speech(BorrowsText):
    """Recordings to text and text to recordings on one trunk of width `dim`.

    A batch holds rows of both tasks: keys that begin with "heard" belong to the rows that transcribe, which come
    first, keys that begin with "said" to the rows that speak. Either may be missing.
    """

    def __init__(self, spec: SpeechSpec, dim: int, text: Modality | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.borrow(text, dim)
        self.codec = spec.codec.build().requires_grad_(False)
        self.features = Features(spec, dim)
        self.voices = Voices(spec.speakers, dim)
        self.start = nn.Parameter(torch.randn(dim) * dim**-0.5)
        delays = range(self.codec.codebooks) if spec.delays is None else spec.delays
        self.frames = CodecFrames(dim, self.codec.codebooks, self.codec.size, list(delays))
        self.listening = Listening(self)
        self.speaking = Speaking(self)

    def fit(self, examples: Iterable[Raw]) -> None:
        """Feature statistics, the names of the speakers, and the codec's codebooks, on at most 2000 raw examples."""
        raws = list(islice(examples, FITTED_ON))
        if not raws:
            raise ValueError("examples: got none, expected training recordings to fit features and codec on")
        self.voices.fit(raw.get("speaker") for raw in raws)
        self.features.fit(self.waveform(raw, self.spec.rate) for raw in raws)
        if not bool(self.codec.fitted):
            self.codec.fit(self.waveform(raw, self.codec.rate) for raw in raws)

    def waveform(self, raw: Raw, rate: int) -> Tensor:
        """The recording of a raw example as [n] at `rate`, brought to the level of the spec.

        Raises ValueError on an empty, silent, non-finite, many-channelled or over-long recording, naming its source.
        """
        audio, found = np.asarray(raw["audio"], dtype=np.float32), int(raw["rate"])
        name = raw.get("source", "audio")
        if audio.ndim != 1 or audio.size == 0:
            raise ValueError(f"{name}: got samples of shape {list(audio.shape)}, expected [n] mono, not empty")
        if found < 1:
            raise ValueError(f"{name}: got a rate of {found}, expected samples per second")
        if not np.isfinite(audio).all():
            raise ValueError(f"{name}: holds NaN or infinite samples; export the recording again")
        if len(audio) > self.spec.seconds * found:
            raise ValueError(
                f"{name}: lasts {len(audio) / found:.2f} s, expected at most {self.spec.seconds:g} s; "
                "cut it, or raise `seconds` of the speech modality"
            )
        wave = resample(torch.from_numpy(audio), found, rate)
        strength = wave.square().mean().sqrt()
        if float(strength) < 1e-6:
            raise ValueError(f"{name}: is silent; leave it out")
        return wave * (self.spec.level / strength)

    def example(self, raw: Raw) -> dict[str, Tensor]:
        """{"audio", "rate", "text", "speaker"?} to features [F, mels], ids [L], rows [R, C] of codes, speaker."""
        text = raw.get("text")
        if not isinstance(text, str) or not text:
            raise ValueError(f"text: expected the words of {raw.get('source', 'the recording')}, got {text!r}")
        return {
            "features": self.features.extract(self.waveform(raw, self.spec.rate)).cpu(),
            "ids": torch.tensor(self.text.tokenizer.encode(text)),
            "rows": self.frames.delayed(self.codec.encode(self.waveform(raw, self.codec.rate)).cpu()),
            "speaker": torch.tensor(self.voices.index(raw.get("speaker"))),
        }

    def collate(self, examples: Sequence[Mapping[str, Tensor]], generator: torch.Generator) -> Batch:
        """Gives each example one of the two tasks, in shares that follow the weights (their rounding is drawn)."""
        share = self.spec.transcribe / (self.spec.transcribe + self.spec.speak)
        heard = int(len(examples) * share + float(torch.rand((), generator=generator)))
        order = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
        batch: Batch = {}
        if heard:
            batch |= self.listening.collate(order[:heard])
        if heard < len(order):
            batch |= self.speaking.collate(order[heard:], generator)
        return batch

    def encode(self, batch: Batch) -> Tokens:
        """Tokens [B, S, D]: rows that transcribe, then rows that speak, padded to one length."""
        parts = []
        if "heard_ids" in batch:
            parts.append(self.listening.encode(batch))
        if "said_ids" in batch:
            parts.append(self.speaking.encode(batch))
        return stack_rows(parts)

    def decode(self, hidden: Tokens) -> Tensor:
        """Hidden states to logits of codec frames [B, S, C, size + 3]."""
        return self.frames.logits(hidden.embedding)

    def loss(self, hidden: Tokens, batch: Batch) -> Loss:
        """Nats per text token of the transcripts plus nats per code of the spoken frames, summed over both."""
        heard = batch["heard_ids"].shape[0] if "heard_ids" in batch else 0
        parts: dict[str, Loss] = {}
        if heard:
            parts["transcribe"] = self.listening.loss(hidden.embedding[:heard], batch)
        if "said_ids" in batch:
            parts["speak"] = self.speaking.loss(hidden.embedding[heard:], batch)
        total = torch.stack([p.total for p in parts.values()]).sum()
        count = torch.stack([p.count.to(total) for p in parts.values()]).sum()
        return Loss(total, count, {name: (p.total.detach(), p.count) for name, p in parts.items()})

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Text tokens to write plus frames to speak, and all tokens that are not padding."""
        parts = [part.units(batch) for part, key in self._tasks() if key in batch]
        counts, tokens = zip(*parts, strict=True)
        return torch.stack([c.float() for c in counts]).sum(), torch.stack(tokens).sum()

    def _tasks(self) -> list[tuple[Listening | Speaking, str]]:
        return [(self.listening, "heard_ids"), (self.speaking, "said_ids")]

    def transcribe(self, step: Step, audios: Sequence[Raw], *, longest: int = 64) -> list[str]:
        """The text of each recording {"audio", "rate"}, the most likely token at a time, at most `longest` tokens.

        `step` must be fresh: it keeps what it has seen.
        """
        return self.listening.sample(step, [self.waveform(raw, self.spec.rate) for raw in audios], longest)

    def speak(
        self,
        step: Step,
        texts: Sequence[str],
        generator: torch.Generator,
        *,
        speakers: Sequence[str | None] | None = None,
        temperature: float = 0.8,
        top_k: int | None = 45,
        max_frames: int | None = None,
        guidance: float | None = None,
    ) -> list[Spoken]:
        """Each text as sound. `step` must be fresh: it keeps what it has seen.

        speakers    a known voice per text, or None for any
        max_frames  longest answer in codec frames (default: `seconds` of the spec)
        guidance    s of logits = cond + s * (cond - uncond), 0 being none; uncond is the empty text
        Raises ValueError on an unknown speaker or an empty text.
        """
        limit = max(1, int(self.spec.seconds * self.codec.frame_rate)) if max_frames is None else max_frames
        voices = [self.voices.index(s, strict=True) for s in speakers or [None] * len(texts)]
        prompt = self.speaking.prompt(texts, voices, twice=guidance is not None)
        codes = self.frames.generate(
            step, prompt, generator, frames=limit, temperature=temperature, top_k=top_k, guidance=guidance
        )
        return [Spoken(self.codec.decode(c).cpu(), c.cpu(), self.codec.rate) for c in codes]

    def sample(self, step: Step, texts: Sequence[str], generator: torch.Generator) -> list[Spoken]:
        """`speak` with its defaults."""
        return self.speak(step, texts, generator)
