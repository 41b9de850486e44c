"""Reading a tokenizer's files: tokenizer.json through `tokenizers`; transformers only where that does not serve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

SERIALISED = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
OLD_SETTINGS = "special_tokens_map.json"
CHATS = ("chat_template.jinja", "chat_template.json")
VOCABULARIES = (
    "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tiktoken.model", "tekken.json",
    "vocab.json", "vocab.txt",
)  # fmt: skip
GENERATION = "generation_config.json"
# What is copied beside the weights when a model that was loaded with it is saved.
TEXT_FILES = (SERIALISED, SETTINGS, OLD_SETTINGS, "added_tokens.json", "merges.txt", *VOCABULARIES, *CHATS, GENERATION)
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("extra_special_tokens", "additional_special_tokens")


def copy_text_files(source: Path, target: Path) -> list[Path]:
    """Copies what TEXT_FILES names from one folder to another, byte for byte; returns the files written.

    Files that `target` holds already stay. Raises OSError where a file cannot be read or written.
    """
    written = []
    for name in TEXT_FILES:
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)
            written.append(target / name)
    return written


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping, empty where the file is not there. Raises ValueError naming the file where it is neither."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping at the top, got {type(content).__name__}")
    return content


def content_of(token: Any) -> str | None:
    """The text of a special token, which files write as a string or as a mapping with its `content`."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


class TokenizerFiles:
    """A tokenizer as its folder describes it. Code that lies beside it is never run.

    tokenizer.json decides how text becomes ids, special ids in front and behind included, as AutoTokenizer of
    transformers 5 has it; tokenizer_config.json (and special_tokens_map.json of old) names the special tokens.
    Raises ValueError where there are no such files, or none that can be read.
    """

    def __init__(self, folder: Path) -> None:
        if not self.found(folder):
            raise ValueError(f"{folder}: no tokenizer files; expected {SERIALISED} or {', '.join(VOCABULARIES)}")
        self.folder = folder
        self.settings = read_json(folder / SETTINGS)
        if "added_tokens_decoder" not in self.settings:  # else it is complete, and the file of old is not looked at
            self.settings |= read_json(folder / OLD_SETTINGS)

    @staticmethod
    def found(folder: Path) -> bool:
        """Whether a folder holds a tokenizer."""
        return any((folder / name).is_file() for name in (SERIALISED, *VOCABULARIES))

    @cached_property
    def named(self) -> dict[str, str]:
        """The content of the special tokens that have a name: bos_token, eos_token ..."""
        if not (self.folder / SERIALISED).is_file():
            return {name: str(token) for name, token in self._automatic.special_tokens_map.items() if name in NAMED}
        found = {name: content_of(self.settings.get(name)) for name in NAMED}
        return {name: token for name, token in found.items() if token is not None}

    @cached_property
    def special(self) -> dict[str, int]:
        """Content of every special token -> its id."""
        added = self.inner.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special or token.content in self._said_special}

    def id(self, token: str) -> int | None:
        """The id of a token by its content."""
        found = self.inner.token_to_id(token)
        return None if found is None else int(found)

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of a text, with the special ids that the tokenizer adds or without."""
        return list(self.inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special ones left out."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True))

    @cached_property
    def inner(self) -> Any:
        """The `tokenizers.Tokenizer`."""
        if not (self.folder / SERIALISED).is_file():
            return self._automatic.backend_tokenizer
        from tokenizers import Tokenizer

        try:
            found = Tokenizer.from_file(str(self.folder / SERIALISED))
        except Exception as error:  # the library raises the plain class
            raise ValueError(f"{self.folder / SERIALISED}: not a tokenizer: {error}") from error
        found.no_truncation()
        found.no_padding()
        self._add_missing(found)
        return found

    @cached_property
    def _said_special(self) -> dict[str, None]:
        """Contents of the tokens that the settings call special, in order."""
        extra = [value for key in EXTRA for value in (self.settings.get(key) or [])]
        tokens = [self.settings.get(name) for name in NAMED] + extra
        return {content: None for content in map(content_of, tokens) if content}

    def _add_missing(self, inner: Any) -> None:
        """Tokens that the settings add to the tokenizer, and those they call special."""
        from tokenizers import AddedToken

        flags = ("lstrip", "rstrip", "normalized", "single_word", "special")
        described = self.settings.get("added_tokens_decoder") or {}
        for _, token in sorted(described.items(), key=lambda item: int(item[0])):
            if inner.token_to_id(token["content"]) is None:
                inner.add_tokens([AddedToken(token["content"], **{f: token[f] for f in flags if f in token})])
        present = {token.content: token for token in inner.get_added_tokens_decoder().values()}
        plain = [present.get(t) or AddedToken(t, normalized=False, special=True) for t in self._said_special]
        inner.add_special_tokens(plain)

    @cached_property
    def _automatic(self) -> Any:
        """The tokenizer by transformers, for vocabularies of other forms."""
        from transformers import AutoTokenizer

        try:
            found = AutoTokenizer.from_pretrained(str(self.folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise ValueError(f"{self.folder}: transformers cannot read this tokenizer: {error}") from error
        if not hasattr(found, "backend_tokenizer"):
            raise ValueError(f"{self.folder}: {type(found).__name__} has no tokenizer.json form; save one beside it")
        return found
