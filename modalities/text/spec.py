"""The description of the text modality."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from modalities.base import Modality, ModalitySpec
from modalities.text.tokenizer import BytesSpec, TokenizerSpec

if TYPE_CHECKING:
    from modalities.text.module import Text


@dataclass(frozen=True, kw_only=True)
class TextSpec(ModalitySpec):
    """Text, one causal token per id.

    tokenizer    how text becomes ids: `{type: bytes}`, `{type: hugging_face, name: ...}` or `{type: files, ...}`
    tie          whether the head uses the embedding's weights
    length       tokens of a training row; longer documents are cropped at random
    vocab        rows of embedding and head where there are more than the tokenizer has ids; null for as many
    scale        factor on embeddings
    logit_scale  factor on logits
    head_bias    whether logits have a bias
    head_norm    none; columns (each of the D columns of the map to logits has length 1 over the vocabulary, Ling's
                 NormHead) or rows (each id's row has length 1, Baichuan 2's)
    """

    tokenizer: TokenizerSpec = field(default_factory=BytesSpec)
    tie: bool = True
    length: int = 128
    vocab: int | None = None
    scale: float = 1.0
    logit_scale: float = 1.0
    head_bias: bool = False
    head_norm: Literal["none", "columns", "rows"] = "none"

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length: got {self.length}, expected at least 2")
        if self.vocab is not None and self.vocab < 1:
            raise ValueError(f"vocab: got {self.vocab}, expected 1 or more")
        for name in ("scale", "logit_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: got {value}, expected a number above 0")

    def rows(self, known: int) -> int:
        """Rows of the embedding for a tokenizer of `known` ids. Raises ValueError where there are fewer rows."""
        if self.vocab is not None and self.vocab < known:
            raise ValueError(f"vocab: got {self.vocab}, expected at least the tokenizer's {known} ids")
        return known if self.vocab is None else self.vocab

    def build(self, dim: int, text: Modality | None = None) -> Text:
        """The module; `text` is not used, this is the text modality itself."""
        from modalities.text.module import Text

        return Text(self, dim)

    def parameters(self, dim: int) -> int:
        """Embedding, head where it is not tied, and bias. Loads the tokenizer to know its vocabulary."""
        rows = self.rows(self.tokenizer.build().vocab_size)
        return rows * (dim * (1 if self.tie else 2) + self.head_bias)
