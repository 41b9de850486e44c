"""The tokenizer that lies beside a model's weights, read when text is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from modalities.text.tokenizer import TokenizerSpec
from modalities.text.tokenizer_files import TokenizerFiles


@dataclass(frozen=True, kw_only=True)
class FilesSpec(TokenizerSpec):
    """The tokenizer whose files lie in the folder that the model was loaded from.

    A model can be built, and run on ids, without them.

    vocab_size  number of ids, special ones included
    bos         the id every row begins with; null for the files' own
    eos         the ids that end a text, the one that training appends first; none for the files' own
    pad         the id that fills rows; null for the files' own
    """

    vocab_size: int
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size: got {self.vocab_size}, expected 1 or more")
        named = {"bos": (self.bos,), "eos": self.eos, "pad": (self.pad,)}
        for name, ids in named.items():
            for i in ids:
                if i is not None and not 0 <= i < self.vocab_size:
                    raise ValueError(f"{name}: got {i}, expected an id of 0..{self.vocab_size - 1}")

    def build(self) -> FilesTokenizer:
        """The tokenizer, no file read."""
        return FilesTokenizer(self)


class FilesTokenizer:
    """See FilesSpec. Ids are those of the spec; where it names none, those of the files, once they are attached."""

    never: tuple[int, ...] = ()  # as in the libraries these models come from: any id may be drawn

    def __init__(self, spec: FilesSpec) -> None:
        self.spec = spec
        self.folder: Path | None = None

    def attach(self, folder: Path) -> None:
        """Names the folder; what was read from another is forgotten."""
        self.folder = folder
        self.__dict__.pop("files", None)

    @cached_property
    def files(self) -> TokenizerFiles:
        """The tokenizer itself. Raises ValueError saying what is missing where there is none."""
        if self.folder is None:
            raise ValueError(
                "tokenizer: the model was not loaded from a folder with tokenizer files, so it reads ids only; "
                "expected zoo.load of such a folder, or input_ids"
            )
        return TokenizerFiles(self.folder)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.spec.vocab_size

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a text; none where neither the spec nor the files know one."""
        return self.spec.eos or self._named("eos_token")

    @property
    def eos(self) -> int:
        """The first of `ends`. Raises ValueError where there is none."""
        if not self.ends:
            raise ValueError("tokenizer.eos: this tokenizer has none; expected the id that ends a text")
        return self.ends[0]

    @property
    def bos(self) -> int:
        """The id rows begin with; eos where there is none."""
        own = self._named("bos_token") if self.spec.bos is None else (self.spec.bos,)
        return own[0] if own else self.eos

    @property
    def pad(self) -> int:
        """The id that fills rows; eos where there is none, 0 where there is no eos either."""
        own = self._named("pad_token") if self.spec.pad is None else (self.spec.pad,)
        return (*own, *self.ends, 0)[0]

    def encode(self, text: str) -> list[int]:
        """Ids of the text without special ids."""
        return self.files.encode(text, special=False)

    def prompt(self, text: str) -> list[int]:
        """Ids of the text with the special ids that the tokenizer itself adds; bos alone for nothing."""
        return self.files.encode(text, special=True) or [self.bos]

    def special(self, token: str) -> int | None:
        """The id of a special token by its content."""
        return self.files.special.get(token)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special ones left out."""
        return self.files.decode(ids)

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """The UTF-8 bytes of the decoded text."""
        return self.decode(ids).encode("utf-8")

    def _named(self, name: str) -> tuple[int, ...]:
        """The id of a named special token of the files, where there are files."""
        if self.folder is None or not TokenizerFiles.found(self.folder):
            return ()
        content = self.files.named.get(name)
        found = None if content is None else self.files.id(content)
        return () if found is None else (found,)
