"""A small tokenizer beside no weights, as public checkpoints carry it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = ["the moon is a harsh mistress", "tell me of the moon, please: \u00e9t\u00e9 \u20ac", "user assistant system"]
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


def byte_level(folder: Path) -> Any:
    """A byte-level BPE that adds <s> in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(WORDS, trainer)
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return found


def metaspace(folder: Path) -> Any:
    """A tokenizer whose pieces begin with their space, and fall back to bytes, as Llama's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz,:"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for left, right in [("\u2581", "m"), ("o", "o"), ("\u2581m", "oo"), ("\u2581moo", "n"), ("\u2581", "t")]:
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    found = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    found.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    found.add_special_tokens(SPECIAL)
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return found


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with tokenizer.json and tokenizer_config.json."""

    def make(kind: str = "byte_level", **settings: Any) -> Path:
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        {"byte_level": byte_level, "metaspace": metaspace}[kind](folder).save(str(folder / "tokenizer.json"))
        eos = {"__type": "AddedToken", "content": "</s>"}
        content = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": eos}
        content |= {"unk_token": "<unk>", "clean_up_tokenization_spaces": False} | settings
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
        return folder

    return make
