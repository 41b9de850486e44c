"""The description of the text modality."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modalities.base import Modality, ModalitySpec
from modalities.text.tokenizer import BytesSpec, TokenizerSpec

if TYPE_CHECKING:
    from modalities.text.module import Text


@dataclass(frozen=True, kw_only=True)
class TextSpec(ModalitySpec):
    """Text, one causal token per id.

    tokenizer   how text becomes ids: `{type: bytes}` or `{type: hugging_face, name: ...}`
    tie         whether the head uses the embedding's weights
    length      tokens of a training row; longer documents are cropped at random
    """

    tokenizer: TokenizerSpec = field(default_factory=BytesSpec)
    tie: bool = True
    length: int = 128

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length: got {self.length}, expected at least 2")

    def build(self, dim: int, text: Modality | None = None) -> Text:
        """The module; `text` is not used, this is the text modality itself."""
        from modalities.text.module import Text

        return Text(self, dim)

    def parameters(self, dim: int) -> int:
        """Embedding and, where it is not tied, head. Loads the tokenizer to know its vocabulary."""
        return self.tokenizer.build().vocab_size * dim * (1 if self.tie else 2)
