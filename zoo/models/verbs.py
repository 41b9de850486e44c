"""What people call on a model: generate, classify, transcribe, speak, compose, sample, forecast.

Each finds the modality it needs by type, works in evaluation mode without gradients, draws from a generator of its own
seed, and leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from zoo.models.writing import Writing

if TYPE_CHECKING:
    from modalities.diffusion.module import Diffusion
    from modalities.music.modality import Music
    from modalities.speech.module import Speech, Spoken
    from modalities.time_series.module import TimeSeries
    from modalities.vision.module import Vision


@dataclass(frozen=True)
class Composed:
    """A piece of music: `audio` float32 [n] at `rate` samples per second, and `piece` in the model's own symbols
    (notes [T, 4] as MIDI pitches, or codes [codebooks, frames])."""

    audio: np.ndarray
    rate: int
    piece: Tensor


@dataclass(frozen=True)
class Classified:
    """What images show: `label` int64 [B], `probability` [B, classes], and the `name` of each label."""

    label: Tensor
    probability: Tensor
    name: tuple[str, ...]


class Verbs(Writing):
    """Mixed into a model of modalities around a trunk."""

    def classify(self, images: Any) -> Classified:
        """What uint8 images show: one [H, W, C] or [H, W], or several (a list, or [B, H, W, C]) of any sizes."""
        several = isinstance(images, (list, tuple)) or np.ndim(images) == 4
        rows = list(images) if several else [images]
        if not rows:
            raise ValueError("images: got none, expected at least one")
        with self._answering("vision") as (vision, step):
            module = cast("Vision", vision)
            device = module.query.device
            inputs = torch.stack([module.example({"image": np.asarray(image)})["image"] for image in rows]).to(device)
            probability = module.classify(step, inputs).cpu()
        label = probability.argmax(-1)
        names = module.spec.names or tuple(str(i) for i in range(module.spec.classes))
        return Classified(label, probability, tuple(names[i] for i in label.tolist()))

    def transcribe(self, audio: Any, rate: int) -> str | list[str]:
        """The words in a waveform [n] in -1..1 with `rate` samples per second; a list of texts for a list of them."""
        several = isinstance(audio, (list, tuple)) and len(audio) > 0 and np.ndim(audio[0]) == 1
        raws = [{"audio": wave, "rate": rate} for wave in (audio if several else [audio])]
        with self._answering("speech") as (speech, step):
            texts = cast("Speech", speech).transcribe(step, raws)
        return texts if several else texts[0]

    def speak(
        self,
        text: str,
        *,
        speaker: str | None = None,
        temperature: float = 0.8,
        top_k: int | None = 45,
        guidance: float | None = None,
        seed: int = 0,
    ) -> Spoken:
        """A text as sound, in a voice the model knows or in any; see Speech.speak for the settings."""
        with self._answering("speech") as (speech, step):
            spoken = cast("Speech", speech).speak(
                step,
                [text],
                torch.Generator().manual_seed(seed),
                speakers=[speaker],
                temperature=temperature,
                top_k=top_k,
                guidance=guidance,
            )
        return spoken[0]

    def compose(self, *, seconds: float = 16.0, temperature: float = 1.0, seed: int = 0) -> Composed:
        """A piece of music of about this length."""
        with self._answering("music") as (found, step):
            music = cast("Music", found)
            steps = round(seconds / music.seconds)
            if steps < 1:
                raise ValueError(f"seconds: got {seconds}, expected at least {music.seconds:.3f}, one step")
            generator = torch.Generator().manual_seed(seed)
            piece = music.compose(step, steps, temperature=temperature, generator=generator)
            audio, rate = music.sound(piece)
        return Composed(audio, rate, piece)

    def sample(
        self,
        labels: int | Sequence[int] | None = None,
        *,
        prompts: str | Sequence[str] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Images uint8 [B, H, W, C], one for each class number, or for each prompt where the model reads prompts.

        steps and guidance are those of the spec where left out. Raises ValueError where the model takes the other kind.
        """
        with self._answering("diffusion") as (diffusion, step):
            module = cast("Diffusion", diffusion)
            given, other = (labels, prompts) if module.spec.condition == "class" else (prompts, labels)
            if given is None or other is not None:
                wanted = "labels" if module.spec.condition == "class" else "prompts"
                raise ValueError(f"{wanted}: missing; this model draws images for {wanted}, and for nothing else")
            conditions: Any = [given] if isinstance(given, (int, str)) else list(given)
            generator = torch.Generator().manual_seed(seed)
            return module.sample(step, conditions, generator=generator, steps=steps, guidance=guidance)

    def forecast(self, series: Any, horizon: int) -> Tensor:
        """The next `horizon` values of a series [n], or of several [B, n], in its own units."""
        with self._answering("time_series") as (module, step):
            return cast("TimeSeries", module).sample(step, series, horizon)
