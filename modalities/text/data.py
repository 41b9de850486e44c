"""Where texts come from: tinyshakespeare, the standard library's docstrings, one's own files."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modalities.base import DataSpec, Raw
from modalities.manifest import read_rows
from modalities.roots import data_root, find, require
from modalities.text.docstrings import standard_library

SHAKESPEARE = "tinyshakespeare/input.txt"
SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
PIECE = 8192


def pieces(text: str, size: int = PIECE) -> list[Raw]:
    """A long text as consecutive raw examples of `size` characters; `ends` is True on the last one only."""
    starts = range(0, len(text), size)
    return [{"text": text[s : s + size], "ends": s + size >= len(text)} for s in starts]


def part(text: str, split: str) -> str:
    """The first 90 % of a corpus for "train", the last 10 % for "test" and "validation"."""
    cut = int(len(text) * 0.9)
    return text[:cut] if split == "train" else text[cut:]


@dataclass(frozen=True, kw_only=True)
class TinyShakespeareSpec(DataSpec):
    """A million characters of Shakespeare's plays; the first 90 % train, the last 10 % test. It has no keys."""

    def available(self) -> bool:
        """Whether the file is below the data root."""
        return find(SHAKESPEARE) is not None

    def build(self, split: str) -> Sequence[Raw]:
        """The split, cut into pieces of 8192 characters."""
        path = require(SHAKESPEARE, "modalities.text.data.download()")
        return pieces(part(path.read_text(encoding="utf-8"), split))


@dataclass(frozen=True, kw_only=True)
class DocstringsSpec(DataSpec):
    """Docstrings of the Python standard library, read from the running Python's own source files. It has no keys."""

    def build(self, split: str) -> Sequence[Raw]:
        """The first 90 % or the last 10 % of their text, cut into pieces of 8192 characters."""
        return pieces(part(standard_library(), split))


@dataclass(frozen=True, kw_only=True)
class TextFilesSpec(DataSpec):
    """Own texts.

    path      a folder of .txt files, one .txt file, or a .jsonl or .csv manifest
    column    the manifest's column that holds the text
    test      share of the texts held out for test; one single text is cut at that share instead
    """

    path: str
    column: str = "text"
    test: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.test < 1:
            raise ValueError(f"test: got {self.test}, expected more than 0 and less than 1")

    def build(self, split: str) -> Sequence[Raw]:
        """Texts of the split. Which text is held out follows from its content, so added files move none."""
        texts = list(self._texts())
        if len(texts) == 1:
            cut = int(len(texts[0]) * (1 - self.test))
            return pieces(texts[0][:cut] if split == "train" else texts[0][cut:])
        held = sorted(range(len(texts)), key=lambda i: hashlib.sha256(texts[i].encode()).digest())
        test = set(held[: max(round(len(texts) * self.test), 1)])
        return [p for i, t in enumerate(texts) if (i in test) != (split == "train") for p in pieces(t)]

    def _texts(self) -> list[str]:
        out = []
        for number, row in enumerate(read_rows(self.path, self.column, (".txt",)), 1):
            value = row[self.column]
            where = str(value) if isinstance(value, Path) else f"{self.path}, row {number}"
            if not isinstance(value, (str, Path)):
                raise ValueError(f"{where}: column {self.column!r} is {type(value).__name__}, expected a string")
            text = _read(value) if isinstance(value, Path) else value
            if not text.strip():
                raise ValueError(f"{where}: the text is empty, expected at least one character; remove it")
            out.append(text)
        return out


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; expected UTF-8 text, convert the file") from error


def download() -> Path:
    """Fetches tinyshakespeare from its public source to the data root; returns its path."""
    target = data_root() / SHAKESPEARE
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    urllib.request.urlretrieve(SOURCE, partial)
    return partial.replace(target)
