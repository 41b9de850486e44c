"""Text to integer ids and back: bytes, or any Hugging Face tokenizer."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


class Tokenizer(Protocol):
    """What a tokenizer offers. `encode` adds no special ids; `decode` and `to_bytes` leave them out."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""

    @property
    def bos(self) -> int:
        """The id every row begins with."""

    @property
    def eos(self) -> int:
        """The id that ends a document."""

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a text, `eos` among them; none where it is not known how texts end."""

    @property
    def never(self) -> tuple[int, ...]:
        """Ids that are never drawn."""

    @property
    def pad(self) -> int:
        """The id that fills rows; always masked."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def prompt(self, text: str) -> list[int]:
        """Ids of a text that is to be continued: with the special ids that stand in front of every row; never none."""

    def special(self, token: str) -> int | None:
        """The id whose whole content is this special token, None where there is none."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; what is not text is replaced, never an error."""

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """The UTF-8 bytes behind ids, exact where the tokenizer allows it."""


class ByteTokenizer:
    """One id per UTF-8 byte (0..255), then bos 256, eos 257, pad 258."""

    vocab_size = 259
    bos, eos, pad = 256, 257, 258
    ends, never = (257,), (256, 258)

    def encode(self, text: str) -> list[int]:
        """The bytes of the text; lone surrogates become '?'."""
        return list(text.encode("utf-8", errors="replace"))

    def prompt(self, text: str) -> list[int]:
        """bos and the bytes."""
        return [self.bos, *self.encode(text)]

    def special(self, token: str) -> int | None:
        """None: special ids have no name in a text."""
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes, U+FFFD for what is no UTF-8; special ids are left out."""
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes themselves."""
        return bytes(i for i in ids if 0 <= i < 256)


class HuggingFaceTokenizer:
    """A tokenizer of `transformers`, by hub name or local folder. Code from the hub is never run.

    With HF_HUB_OFFLINE=1 only the local cache is read. A tokenizer without a bos id begins rows with its eos id; one
    without a pad id pads with its eos id.
    Raises ValueError where it cannot be loaded or has no id to end a text with.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.inner = _load(name)
        eos = self.inner.eos_token_id if self.inner.eos_token_id is not None else self.inner.sep_token_id
        if eos is None:
            raise ValueError(f"name: tokenizer {name!r} has neither an eos nor a sep token; expected one")
        first = self.inner.bos_token_id if self.inner.bos_token_id is not None else self.inner.cls_token_id
        self.eos = int(eos)
        self.bos = self.eos if first is None else int(first)
        self.pad = self.eos if self.inner.pad_token_id is None else int(self.inner.pad_token_id)
        self.ends = (self.eos,)
        self.never = tuple(sorted({self.bos, self.pad} - {self.eos}))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self.inner)

    def encode(self, text: str) -> list[int]:
        """Ids of the text without special ids."""
        return list(self.inner.encode(text, add_special_tokens=False))

    def prompt(self, text: str) -> list[int]:
        """bos (eos where there is none) and the text."""
        return [self.bos, *self.encode(text)]

    def special(self, token: str) -> int | None:
        """The id of a special token by its content."""
        known = token in self.inner.all_special_tokens
        return int(self.inner.convert_tokens_to_ids(token)) if known else None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special ones left out."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True))

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """The UTF-8 bytes of the decoded text."""
        return self.decode(ids).encode("utf-8")


@functools.lru_cache(maxsize=8)
def _load(name: str) -> Any:
    from transformers import AutoTokenizer

    offline = os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=offline)
    except (OSError, ValueError) as error:
        where = "in the local cache (HF_HUB_OFFLINE is set)" if offline else "on the hub"
        raise ValueError(
            f"name: no tokenizer {name!r} as a folder or {where}; expected a folder with tokenizer.json or a hub name"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """Which tokenizer. Its `type` key is looked up under the kind "tokenizer"."""

    kind: ClassVar[str] = "tokenizer"

    def build(self) -> Tokenizer:
        """The tokenizer."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class BytesSpec(TokenizerSpec):
    """UTF-8 bytes; needs no file and no vocabulary. It has no keys."""

    def build(self) -> Tokenizer:
        """A ByteTokenizer."""
        return ByteTokenizer()


@dataclass(frozen=True, kw_only=True)
class HuggingFaceSpec(TokenizerSpec):
    """A Hugging Face tokenizer.

    name   hub name such as "gpt2", or a folder that holds tokenizer.json
    """

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: got an empty string, expected a hub name or a folder")

    def build(self) -> Tokenizer:
        """The tokenizer, loaded from the folder, the cache or the hub."""
        return HuggingFaceTokenizer(self.name)
