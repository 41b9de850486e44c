"""How well the model listens and speaks, on held-out recordings and beside honest baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modalities.base import Raw, Score, Step
from modalities.codecs.files import write_wav
from modalities.speech.module import Speech, Spoken
from modalities.speech.recogniser import Recogniser, classes, nearest_class_mean

LEARNT_FROM = 1000  # training recordings that the baseline and the recogniser see
ROWS = 128  # recordings transcribed, or texts spoken, at once
RESTORED = 60  # test recordings sent through the codec and back
PAUSE = 0.15  # seconds between the words of spoken.wav


def evaluate(
    modality: Speech,
    new_step: Callable[[], Step],
    train: Sequence[Raw],
    test: Sequence[Raw],
    *,
    generator: torch.Generator,
    out: Path | None = None,
    limit: int | None = None,
) -> list[Score]:
    """Accuracy of transcription, and of an independent recogniser on spoken words.

    Texts of the training data are taken as the words to tell apart. `limit` bounds the recordings transcribed and the
    words spoken (100 otherwise). With `out`, spoken.wav there holds each word once, in order, the first attempt.
    """
    learnt = spread(train, LEARNT_FROM)
    words = classes([raw["text"] for raw in learnt])
    held = spread(test, limit or len(test))
    scores = []
    if modality.spec.transcribe:
        scores.append(_listening(modality, new_step, learnt, held))
    if modality.spec.speak:
        count = -(-(limit or 100) // len(words))
        said = [word for word in words for _ in range(count)]
        spoken = _speak(modality, new_step, said, generator)
        scores.append(_speaking(modality, said, spoken, learnt, held))
        if out is not None:
            order = _in_order(words)
            write_wav(Path(out) / "spoken.wav", join([spoken[said.index(w)] for w in order]), modality.codec.rate)
    return scores


def spread(raws: Sequence[Raw], most: int) -> list[Raw]:
    """At most so many examples, in order, from a fixed draw: files are sorted by word, so strides would miss words."""
    count = min(most, len(raws))
    if count == 0:
        raise ValueError("test: got no recordings, expected at least one to evaluate on")
    chosen = torch.randperm(len(raws), generator=torch.Generator().manual_seed(0))[:count]
    return [raws[i] for i in sorted(chosen.tolist())]


def join(spoken: Sequence[Spoken]) -> Tensor:
    """Several recordings in a row, with pauses."""
    pause = torch.zeros(int(PAUSE * spoken[0].rate))
    return torch.cat([piece for s in spoken for piece in (s.audio, pause)])


def _listening(modality: Speech, new_step: Callable[[], Step], train: Sequence[Raw], test: Sequence[Raw]) -> Score:
    heard: list[str] = []
    for i in range(0, len(test), ROWS):
        heard += modality.transcribe(new_step(), test[i : i + ROWS], longest=32)
    texts = [raw["text"] for raw in test]
    guess = nearest_class_mean(_means(modality, train), [raw["text"] for raw in train], _means(modality, test))
    note = f"{len(test)} held-out recordings; baseline: nearest class mean on mean log-mel of {len(train)}"
    return Score("transcription", _share(heard, texts), _share(guess, texts), True, "accuracy", note)


def _speaking(
    modality: Speech, said: Sequence[str], spoken: Sequence[Spoken], train: Sequence[Raw], test: Sequence[Raw]
) -> Score:
    from scipy.stats import binomtest

    def real(raws: Sequence[Raw]) -> list[tuple[Tensor, int]]:
        return [(modality.waveform(raw, modality.codec.rate), modality.codec.rate) for raw in raws]

    judge = Recogniser(real(train), [raw["text"] for raw in train])
    correct = sum(a == b for a, b in zip(judge([(s.audio, s.rate) for s in spoken]), said, strict=True))
    bound = float(binomtest(correct, len(said)).proportion_ci(0.95, method="exact").low)
    part = spread(test, RESTORED)
    restored = [(modality.codec.decode(modality.codec.encode(audio)).cpu(), rate) for audio, rate in real(part)]
    on_real = _share(judge(real(test)), [raw["text"] for raw in test])
    on_codec = _share(judge(restored), [raw["text"] for raw in part])
    length = sum(len(s.audio) / s.rate for s in spoken) / len(spoken)
    usual = sum(len(raw["audio"]) / raw["rate"] for raw in test) / len(test)
    note = (
        f"{len(said)} spoken words; the recogniser itself: {on_real:.2f} on real test recordings, {on_codec:.2f} after "
        f"the codec; mean length {length:.2f} s (real {usual:.2f} s); baseline: chance"
    )
    return Score("spoken words recognised", correct / len(said), 1 / len(set(said)), True, "accuracy", note, bound)


def _speak(
    modality: Speech, new_step: Callable[[], Step], texts: Sequence[str], generator: torch.Generator
) -> list[Spoken]:
    """Texts in turn by the known voices, guided where the model was trained for it (s = 1, the paper's for speech)."""
    voices: list[str | None] = [*modality.voices.known()] or [None]
    speakers = [voices[i % len(voices)] for i in range(len(texts))]
    guidance = 1.0 if modality.spec.drop_text else None
    spoken: list[Spoken] = []
    for i in range(0, len(texts), ROWS):
        part = slice(i, i + ROWS)
        spoken += modality.speak(new_step(), texts[part], generator, speakers=speakers[part], guidance=guidance)
    return spoken


def _means(modality: Speech, raws: Sequence[Raw]) -> Tensor:
    """Mean log-mel frame [N, mels] of each recording."""
    frames = (modality.features.extract(modality.waveform(raw, modality.spec.rate)) for raw in raws)
    return torch.stack([f.mean(0).cpu() for f in frames])


def _share(got: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(got, wanted, strict=True)) / len(wanted)


def _in_order(words: Sequence[str]) -> list[str]:
    """Digits by value, other words as they come."""
    from modalities.speech.data import WORDS

    return sorted(words, key=lambda w: (WORDS.index(w) if w in WORDS else len(WORDS), w))
