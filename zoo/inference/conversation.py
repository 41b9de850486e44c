"""A conversation with a language model: the chat template in front, the answers kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Unpack, cast

from modalities.text.chat import ChatTemplate
from modalities.text.sampling import SamplingKeys

if TYPE_CHECKING:
    from zoo.models.writing import Writing


class Conversation:
    """Messages that grow by question and answer, with a model that was loaded from a folder with a chat template.

    messages  what has been said, as mappings with `role` and `content`

    Raises ValueError where there is no chat template.
    """

    def __init__(self, model: Writing, system: str | None = None) -> None:
        folder = cast(Any, model.modality(model.find("text"))).folder
        if folder is None:
            raise ValueError("no chat template: the model was not loaded from a folder; expected one that holds it")
        self.model, self.template = model, ChatTemplate(folder)
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]

    def ask(self, question: str, *, seed: int = 0, **settings: Unpack[SamplingKeys]) -> Iterator[str]:
        """The answer, piece by piece; it joins the messages once it has come to its end.

        Settings are those of `generate`. Raises ValueError where the template refuses the messages.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        prompt = self.template.render(asked)
        pieces = self.model.generate(prompt, special=False, stream=True, seed=seed, **settings)
        return self._answer(asked, cast(Iterator[str], pieces))

    def _answer(self, asked: list[dict[str, Any]], pieces: Iterator[str]) -> Iterator[str]:
        whole = []
        for piece in pieces:
            whole.append(piece)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(whole)}]
