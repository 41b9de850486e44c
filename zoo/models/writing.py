"""The verbs of models with text: ids to logits, prompts to text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
import torch
from torch import Tensor

from modalities.text.sampling import Sampling, SamplingKeys
from zoo.backbone.cache import Cache
from zoo.models.answering import Answering
from zoo.models.language import Ids, LanguageOutput, as_prompt, as_tensor, as_tokens, mean_cross_entropy

if TYPE_CHECKING:
    from modalities.text.module import Text


class Writing(Answering):
    """Calls with `input_ids`, and `generate`."""

    def new_cache(self) -> Cache:
        """An empty key/value cache for calls with `input_ids`."""
        return self.backbone.new_cache()

    @property
    def sampling(self) -> Sampling:
        """How `generate` continues text where a call says nothing else: as generation_config.json beside the weights
        says, else at a temperature of 0.8. May be set; saved with the model then."""
        return self._text()[1].sampling

    @sampling.setter
    def sampling(self, value: Sampling) -> None:
        self._text()[1].sampling = value

    def language(
        self,
        input_ids: Ids,
        attention_mask: Ids | None = None,
        labels: Ids | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> LanguageOutput:
        """What `model(input_ids=...)` computes: see LanguageOutput. Differentiable; shapes as in `as_tokens`.

        Ids, mask and labels may be tensors, arrays or lists of lists. Labels [B, S] are shifted here: position i is
        scored on label i + 1, -100 is left out. With a cache, input_ids are the new ones only.
        """
        name, text = self._text()
        tokens = as_tokens(text, input_ids, attention_mask, cache)
        out = self.run(tokens, name, cache, output_hidden=output_hidden_states)
        state = out.tokens.embedding
        hidden = (tokens.embedding, *out.hidden[:-1], state) if output_hidden_states else None
        logits = text.logits(state) if labels is None else None
        loss = None if labels is None else mean_cross_entropy(text, state, labels)
        return LanguageOutput(state, text.logits, logits, loss, hidden, cache, out.records)

    def generate(
        self,
        prompt: str | Sequence[str] | Ids = "",
        *,
        attention_mask: Ids | None = None,
        special: bool = True,
        sampling: Sampling | None = None,
        seed: int = 0,
        stream: bool = False,
        prefill_chunk: int | None = None,
        **changes: Unpack[SamplingKeys],
    ) -> str | list[str] | Tensor | Iterator[str] | Iterator[list[str]] | Iterator[Tensor]:
        """What follows a prompt: a string for a string, a list for a list, ids [B, S + n] for ids [B, S].

        Strings leave the prompt out; ids stand in front, and `attention_mask` [B, S] is 0 where rows are padded on the
        left. How is said by `sampling` (the model's own where left out) and by its keys one by one, such as
        `temperature=0`. `special` off keeps the tokenizer from adding ids in front of strings: a rendered chat has
        them. With `stream`, an iterator: over pieces of text for a string, lists of pieces for a list, the next ids [B]
        for ids; the model stays in evaluation mode until it ends. `seed` draws. `prefill_chunk` bounds how many
        positions of the prompt are computed at once. Raises ValueError on impossible settings.
        """
        name, text = self._text()
        how = (self.sampling if sampling is None else sampling).but(changes)
        settings: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed), "prefill_chunk": prefill_chunk}
        if not _is_text(prompt):
            ids = as_tensor("prompt", cast("Ids", prompt))
            given = as_prompt(text, ids, attention_mask)
            drawn = self._quietly(text.extend(self.stepper(name), given, how, **settings))
            if stream:
                return (new.clone() for new in drawn)  # outside inference mode, so that it may go into training
            return torch.cat([ids.cpu(), torch.stack(list(drawn), dim=1)], dim=1)
        if attention_mask is not None:
            raise ValueError("attention_mask: goes with ids; strings are padded here")
        words = [prompt] if isinstance(prompt, str) else list(cast("Sequence[str]", prompt))
        given = text.prompt(words, special)
        pieces = self._quietly(text.write(self.stepper(name), given, how, **settings))
        if isinstance(prompt, str):
            first = (row[0] for row in pieces)
            return filter(None, first) if stream else "".join(first)
        return pieces if stream else ["".join(row) for row in zip(*pieces, strict=True)]

    def _text(self) -> tuple[str, Text]:
        name = self.find("text")
        return name, cast("Text", self.modalities[name])


def _is_text(prompt: str | Sequence[str] | Ids) -> bool:
    """Whether a prompt is words rather than ids. Raises TypeError where it is some of both."""
    if isinstance(prompt, (str, Tensor, np.ndarray)):
        return isinstance(prompt, str)
    words = [isinstance(one, str) for one in prompt]
    if any(words) and not all(words):
        raise TypeError("prompt: expected a string, a list of strings, or ids [batch, length]")
    return all(words)
