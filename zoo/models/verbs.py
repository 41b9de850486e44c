"""What people call on a model: generate, classify, transcribe, speak, compose, sample, forecast.

Each finds the modality it needs by type, works in evaluation mode without gradients, draws from a generator of its own
seed, and leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from modalities.base import Step, Tokens
from zoo import registry
from zoo.backbone.cache import Cache
from zoo.backbone.trunk import Backbone, BackboneOutput
from zoo.models.calm import evaluating
from zoo.models.language import LanguageOutput, as_tokens, continue_ids, cross_entropy, pieces

if TYPE_CHECKING:
    from modalities.diffusion.module import Diffusion
    from modalities.music.modality import Music
    from modalities.speech.module import Speech, Spoken
    from modalities.text.module import Text
    from modalities.time_series.module import TimeSeries
    from modalities.vision.module import Vision
    from zoo.models.unified import UnifiedSpec

T = TypeVar("T")


class MissingModalityError(ValueError):
    """The model cannot do what was asked; the message says what it has."""


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


class Verbs(nn.Module):
    """Mixed into a model that has a spec, modalities around a trunk, and `stepper` and `run` for them."""

    spec: UnifiedSpec
    backbone: Backbone
    modalities: nn.ModuleDict

    def stepper(self, name: str) -> Step:
        """A fresh step for sampling one modality."""
        raise NotImplementedError

    def run(
        self,
        tokens: Tokens,
        name: str,
        cache: Cache | None = None,
        *,
        step: Tensor | None = None,
        seed: int | None = None,
        output_hidden: bool = False,
    ) -> BackboneOutput:
        """The trunk over one modality's tokens."""
        raise NotImplementedError

    def find(self, kind: str) -> str:
        """The name of the modality of this registered type; where there are several, the one named like the type, else
        the first. Raises MissingModalityError saying what there is."""
        types = {name: registry.type_of(spec) for name, spec in self.spec.modalities.items()}
        names = [name for name, found in types.items() if found == kind]
        if not names:
            held = ", ".join(dict.fromkeys(map(_say, types.values())))
            raise MissingModalityError(f"this model has no {_say(kind)} modality; it has {held}")
        return kind if kind in names else names[0]

    @contextmanager
    def _answering(self, kind: str) -> Iterator[tuple[Any, Step]]:
        """The modality of a type and a fresh step for it, in evaluation mode without gradients."""
        name = self.find(kind)
        with evaluating(self), torch.inference_mode():
            yield self.modalities[name], self.stepper(name)

    def new_cache(self) -> Cache:
        """An empty key/value cache for calls with `input_ids`."""
        return self.backbone.new_cache()

    def language(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> LanguageOutput:
        """What `model(input_ids=...)` computes: see LanguageOutput. Differentiable; shapes as in `as_tokens`.

        Labels [B, S] are shifted here: position i is scored on label i + 1, -100 is left out. With a cache, input_ids
        are the new ones only.
        """
        name = self.find("text")
        text = cast("Text", self.modalities[name])
        tokens = as_tokens(text, input_ids, attention_mask, cache)
        out = self.run(tokens, name, cache, output_hidden=output_hidden_states)
        logits = text.logits(out.tokens.embedding)
        loss = None if labels is None else cross_entropy(logits, labels)
        hidden = (*out.hidden, out.tokens.embedding) if output_hidden_states else None
        return LanguageOutput(logits, loss, hidden, cache, out.records)

    def generate(
        self,
        prompt: str | Sequence[str] | Tensor = "",
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stream: bool = False,
    ) -> str | list[str] | Tensor | Iterator[str]:
        """Text after a prompt: a string for a string, a list for a list, ids [B, S + n] for ids [B, S] (unpadded, bos
        included). The prompt stands in front of ids and is left out of strings.

        Temperature 0 takes the likeliest id. With `stream`, an iterator over the pieces of one prompt's text; the model
        stays in evaluation mode until it ends. Raises ValueError on impossible settings.
        """
        name = self.find("text")
        text = cast("Text", self.modalities[name])
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        settings |= {"top_k": top_k, "top_p": top_p, "generator": torch.Generator().manual_seed(seed)}
        step = self.stepper(name)
        if isinstance(prompt, Tensor):
            drawn = self._quietly(continue_ids(text, step, prompt, **settings))
            return torch.cat([prompt.cpu(), torch.stack(list(drawn), dim=1)], dim=1)
        drawn = self._quietly(text.stream(step, prompt, **settings))
        if stream:
            if not isinstance(prompt, str):
                raise ValueError(f"stream: takes one prompt, got {len(prompt)}")
            return pieces(text, drawn)
        texts = text.texts(torch.stack(list(drawn), dim=1))
        return texts[0] if isinstance(prompt, str) else texts

    def _quietly(self, values: Iterator[T]) -> Iterator[T]:
        """The values, each computed in evaluation mode without gradients."""
        with evaluating(self):
            while True:
                with torch.inference_mode():
                    value = next(values, None)
                if value is None:
                    return
                yield value

    def classify(self, images: Any) -> Classified:
        """What uint8 images show: one [H, W, C] or [H, W], or several (a list, or [B, H, W, C]) of any sizes."""
        rows = [images] if np.ndim(images) in (2, 3) and not isinstance(images, (list, tuple)) else list(images)
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


def _say(kind: str) -> str:
    return kind.replace("_", " ")
