"""Modalities that read or write words borrow the model's text modality, or bring one of their own."""

from __future__ import annotations

from modalities.base import Modality
from modalities.text.module import Text
from modalities.text.spec import TextSpec


class BorrowsText(Modality):
    """A modality with prompts, captions or transcripts: `text` is there once `borrow` has been called."""

    own_text: Text
    _text: tuple[Text]

    def borrow(self, text: Modality | None, dim: int) -> None:
        """Takes the model's text modality; where it has none, builds one, which is then saved with this modality.

        Raises ValueError where `text` is another modality.
        """
        if text is None:
            self.own_text = text = TextSpec().build(dim)
        if not isinstance(text, Text):
            raise ValueError(f"text: got {type(text).__name__}, expected the model's text modality")
        self._text = (text,)  # in a tuple, so that its weights are not held twice in the state dict

    @property
    def text(self) -> Text:
        """The text modality whose tokenizer, embedding and head are used."""
        return self._text[0]
