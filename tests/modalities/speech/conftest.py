"""A small speech modality, fitted on the embedded digits."""

from __future__ import annotations

import pytest
import torch

from modalities.base import Raw
from modalities.codecs.spec import LogMelRVQSpec
from modalities.speech.data import SpokenDigitsSpec
from modalities.speech.module import Speech
from modalities.speech.spec import SpeechSpec
from modalities.text.spec import TextSpec

DIM = 32


@pytest.fixture(scope="session")
def raws() -> list[Raw]:
    """60 embedded recordings, every digit, several voices."""
    train = SpokenDigitsSpec().build("train")
    return [train[i] for i in range(0, len(train), 9)][:60]


@pytest.fixture(scope="session")
def speech(raws: list[Raw]) -> Speech:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = TextSpec().build(DIM)
        spec = SpeechSpec(codec=LogMelRVQSpec(codebooks=3, size=32, griffin=8), speakers=4)
        built = spec.build(DIM, text)
    built.fit(raws)
    return built
