"""generation_config.json in and out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from modalities.text import generation_config
from modalities.text.sampling import Sampling


def read(folder: Path, **fields: Any) -> Sampling:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    found = generation_config.read(folder)
    assert found is not None
    return found


def test_what_fields_mean(tmp_path: Path) -> None:
    assert generation_config.read(tmp_path) is None
    assert read(tmp_path) == Sampling(temperature=0)
    assert read(tmp_path, temperature=0.6, top_p=None) == Sampling(temperature=0)
    assert read(tmp_path, do_sample=True) == Sampling(temperature=1, top_k=50)
    everything = {
        "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.05,
        "max_new_tokens": 9, "eos_token_id": [7, 8], "stop_strings": "END", "bos_token_id": 1, "pad_token_id": 0,
        "transformers_version": "5.0", "num_beams": 1, "max_length": 2048,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, **everything) == Sampling(
            temperature=0.6, top_k=20, top_p=0.95, min_p=0.1, repetition_penalty=1.05, max_new_tokens=9, eos=(7, 8),
            stop=("END",),
        )  # fmt: skip
    assert read(tmp_path, do_sample=True, top_k=0, eos_token_id=5) == Sampling(eos=(5,))


def test_what_would_change_the_text_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"not offered here and left out: no_repeat_ngram_size=3, num_beams=4"):
        read(tmp_path, num_beams=4, no_repeat_ngram_size=3, typical_p=1.0)
    with pytest.warns(UserWarning, match=r"unknown fields left out: chat_format"):
        read(tmp_path, chat_format="chatml")


@pytest.mark.parametrize(
    ("fields", "message"), [({"top_k": -3}, "top_k: got -3"), ({"max_new_tokens": "x"}, "generation_config.json: ")]
)
def test_impossible_values_name_the_file(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **fields)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config.json: not readable as JSON"):
        generation_config.read(tmp_path)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(temperature=0.7, top_k=3, top_p=0.5, min_p=0.2, repetition_penalty=1.2, stop=("a",), eos=(3, 4)),
    ],
)
def test_it_is_read_as_it_was_written_here_and_by_transformers(tmp_path: Path, sampling: Sampling) -> None:
    from transformers import GenerationConfig

    generation_config.write(tmp_path, sampling, {"eos_token_id": [], "pad_token_id": 5})
    assert generation_config.read(tmp_path) == sampling
    peer = GenerationConfig.from_pretrained(str(tmp_path))
    assert peer.do_sample == (sampling.temperature > 0) and peer.pad_token_id == 5
    assert peer.max_new_tokens == sampling.max_new_tokens
    if peer.do_sample:
        assert (peer.temperature, peer.top_k, peer.top_p) == (sampling.temperature, sampling.top_k or 0, sampling.top_p)


def test_every_field_of_transformers_is_known() -> None:
    from transformers import GenerationConfig

    known = generation_config.HARMLESS | generation_config.IDLE.keys() | generation_config.READ
    assert set(GenerationConfig().to_dict()) <= known
