"""Bits per note (or per code) on held-out pieces, beside a bigram of each voice fitted on the training pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modalities.base import Raw, Score, Step
from modalities.codecs.files import write_wav
from modalities.music.bigram import Bigram
from modalities.music.files import write_midi
from modalities.music.modality import Music
from modalities.music.score import REST

SECONDS = 16.8  # of the composed piece: seven bars at 100 quarter notes per minute


def evaluate(
    modality: Music,
    new_step: Callable[[], Step],
    train: Sequence[Raw],
    test: Sequence[Raw],
    *,
    generator: torch.Generator,
    out: Path | None = None,
    limit: int | None = None,
) -> list[Score]:
    """The model's and the bigram's bits over the same held-out notes; `limit` bounds the test pieces, evenly spaced.

    Writes a composed `music.wav` (and, of notes, `music.mid`) to the folder `out`, and says in the score's note how it
    measures. Raises ValueError where there is nothing to test, RuntimeError where the composed sound is silent or
    not finite.
    """
    if not train or not test:
        raise ValueError(f"got {len(train)} training and {len(test)} test pieces, expected at least one of each")
    if limit is not None and limit < len(test):
        test = [test[i] for i in np.linspace(0, len(test) - 1, limit).round().astype(int)]
    held = [modality.example(raw) for raw in test]
    known = [modality.pieces(modality.example(raw)) for raw in train]
    value = bits(modality, new_step, held)
    bigram = Bigram(known, modality.symbols)
    pieces = [modality.pieces(example) for example in held]
    note = f"{sum(p.size for p in pieces)} {modality.unit}s of {len(pieces)} pieces; baseline: {modality.unit} bigram"
    if out is not None:
        note += "; " + _artefact(modality, new_step(), known, generator, Path(out))
    unit = f"bits per {modality.unit}"
    return [Score(unit, value, bigram.bits(pieces), higher=False, unit=unit, note=note)]


@torch.no_grad()
def bits(modality: Music, new_step: Callable[[], Step], held: Sequence[Mapping[str, Tensor]], rows: int = 12) -> float:
    """Mean bits the model needs for a symbol of these examples, read in windows of the training length."""
    windows = [window for example in held for window in modality.windows(example)]
    device = next(modality.parameters()).device
    total = count = 0.0
    for first in range(0, len(windows), rows):
        batch = {name: value.to(device) for name, value in modality.stack(windows[first : first + rows]).items()}
        loss = modality.loss(new_step()(modality.encode(batch)), batch)
        total += float(loss.total)
        count += float(loss.count)
    return total / count / math.log(2)


def _artefact(modality: Music, step: Step, known: Sequence[np.ndarray], generator: torch.Generator, out: Path) -> str:
    """Composes, writes and measures a piece; what was measured, in words."""
    piece = modality.compose(step, round(SECONDS / modality.seconds), temperature=0.9, generator=generator)
    audio, rate = modality.sound(piece)
    seconds, loudness, peak = measure(audio, rate)
    write_wav(out / "music.wav", audio, rate)
    words = f"music.wav: {seconds:.1f} s, RMS {loudness:.3f}, peak {peak:.2f}"
    if modality.unit != "note":
        return words
    write_midi(out / "music.mid", piece.numpy())
    found, usual = statistics(piece.numpy(), known), statistics(np.concatenate(known), known)
    return words + "".join(f", {name} {found[name]:.0%} (training {usual[name]:.0%})" for name in found)


def measure(audio: np.ndarray, rate: int) -> tuple[float, float, float]:
    """(seconds, RMS, peak) of a waveform; RuntimeError where it is silent or not finite."""
    if not len(audio) or not np.isfinite(audio).all():
        raise RuntimeError(f"the composed sound has {len(audio)} samples or holds NaN; train for longer")
    loudness, peak = float(np.sqrt(np.mean(np.square(audio)))), float(np.abs(audio).max())
    if peak < 1e-3:
        raise RuntimeError("the composed sound is silent (only rests were written); train for longer")
    return len(audio) / rate, loudness, peak


def statistics(notes: np.ndarray, known: Sequence[np.ndarray]) -> dict[str, float]:
    """Shares of notes [T, 4] that sound, that lie in their voice's range in the pieces `known`, and that are held."""
    joined = np.concatenate(known)
    lowest = np.where(joined == REST, 127, joined).min(axis=0)
    sounding = notes != REST
    inside = (notes >= lowest) & (notes <= joined.max(axis=0))
    held = (notes[1:] == notes[:-1]).mean() if len(notes) > 1 else 0.0
    return {
        "sounding": float(sounding.mean()),
        "in range": float(inside[sounding].mean()) if sounding.any() else 0.0,
        "held": float(held),
    }
