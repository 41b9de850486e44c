"""The verbs of models with text: ids to logits, prompts to text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from zoo.backbone.cache import Cache
from zoo.models.answering import Answering
from zoo.models.language import LanguageOutput, as_tokens, continue_ids, cross_entropy, pieces

if TYPE_CHECKING:
    from modalities.text.module import Text


class Writing(Answering):
    """Calls with `input_ids`, and `generate`."""

    def new_cache(self) -> Cache:
        """An empty key/value cache for calls with `input_ids`."""
        return self.backbone.new_cache()

    def language(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> LanguageOutput:
        """What `model(input_ids=...)` computes: see LanguageOutput. Differentiable; shapes as in `as_tokens`.

        Labels [B, S] are shifted here: position i is scored on label i + 1, -100 is left out. With a cache, input_ids
        are the new ones only.
        """
        name = self.find("text")
        text = cast("Text", self.modalities[name])
        tokens = as_tokens(text, input_ids, attention_mask, cache)
        out = self.run(tokens, name, cache, output_hidden=output_hidden_states)
        logits = text.logits(out.tokens.embedding)
        loss = None if labels is None else cross_entropy(logits, labels)
        hidden = (*out.hidden, out.tokens.embedding) if output_hidden_states else None
        return LanguageOutput(logits, loss, hidden, cache, out.records)

    def generate(
        self,
        prompt: str | Sequence[str] | Tensor = "",
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stream: bool = False,
    ) -> str | list[str] | Tensor | Iterator[str]:
        """Text after a prompt: a string for a string, a list for a list, ids [B, S + n] for ids [B, S] (unpadded, bos
        included). The prompt stands in front of ids and is left out of strings.

        Temperature 0 takes the likeliest id. With `stream`, an iterator over the pieces of one prompt's text; the model
        stays in evaluation mode until it ends. Raises ValueError on impossible settings.
        """
        name = self.find("text")
        text = cast("Text", self.modalities[name])
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        settings |= {"top_k": top_k, "top_p": top_p, "generator": torch.Generator().manual_seed(seed)}
        step = self.stepper(name)
        if isinstance(prompt, Tensor):
            drawn = self._quietly(continue_ids(text, step, prompt, **settings))
            return torch.cat([prompt.cpu(), torch.stack(list(drawn), dim=1)], dim=1)
        drawn = self._quietly(text.stream(step, prompt, **settings))
        if stream:
            if not isinstance(prompt, str):
                raise ValueError(f"stream: takes one prompt, got {len(prompt)}")
            return pieces(text, drawn)
        texts = text.texts(torch.stack(list(drawn), dim=1))
        return texts[0] if isinstance(prompt, str) else texts
