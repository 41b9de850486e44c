"""What a text modality does after prompts: ids, streams and texts that continue them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from modalities.base import Batch, Modality, Step, pad_rows
from modalities.text.generation import continued
from modalities.text.sampling import Sampling
from modalities.text.tokenizer import Tokenizer
from modalities.text.writer import CONTEXT, Writer

DEFAULT = Sampling()


class Drawing(TypedDict, total=False):
    """What `Continuing.extend` is told beside the sampling, as keyword arguments."""

    generator: torch.Generator | None
    prefill_chunk: int | None


class Continuing(Modality):
    """Prompts in, continuations out; mixed into Text, which has the tokenizer, the embedding and the head."""

    tokenizer: Tokenizer
    embedding: nn.Embedding

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [...] to embeddings [..., D]."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] to logits [..., V]."""
        raise NotImplementedError

    def prompt(self, texts: Sequence[str], special: bool = True) -> Batch:
        """Prompts to ids [B, S] padded on the left, mask [B, S] and position [B, S, 1] from 0 at the first real id.

        The tokenizer adds the special ids that rows begin with, unless `special` is off: a rendered chat holds them
        already. Raises ValueError where there is no prompt, or one without any id.
        """
        rows = [self.tokenizer.prompt(t) if special else self.tokenizer.encode(t) for t in texts]
        if not rows:
            raise ValueError("prompt: got an empty list, expected at least one text")
        if not all(rows):
            raise ValueError("prompt: got an empty text without special ids, expected at least one id")
        flipped, mask = pad_rows([torch.tensor(r).flip(0) for r in rows], self.tokenizer.pad)
        return self.given(flipped.flip(1), mask.flip(1))

    def given(self, ids: Tensor, mask: Tensor | None = None) -> Batch:
        """Ids [B, S], with a mask [B, S] where rows are padded on the left, as `extend` takes them."""
        if mask is None:
            position = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
            return {"ids": ids, "position": position.unsqueeze(-1)}
        return {"ids": ids, "mask": mask, "position": (mask.cumsum(1) - 1).clamp(min=0).unsqueeze(-1)}

    def extend(
        self,
        step: Step,
        given: Batch,
        sampling: Sampling,
        *,
        generator: torch.Generator | None = None,
        writers: Sequence[Writer] = (),
        prefill_chunk: int | None = None,
    ) -> Iterator[Tensor]:
        """Yields the next id of every row, int64 [B] on the CPU, as soon as it is drawn; `given` is as `prompt` makes
        it.

        A row that has drawn an end or a stop text yields pad from then on; the stream ends with its last row. `step`
        must be fresh: it keeps what it has seen. `writers`, one per row, are pushed the ids. The prompts are fed
        `prefill_chunk` positions at a time, which bounds the memory of long ones. A temperature above 0 needs a
        generator. Raises ValueError on impossible settings.
        """
        if sampling.stop and not writers:
            writers = self.writers(given, sampling)
        return continued(self, step, given, sampling, generator, writers, prefill_chunk)

    def stream(
        self, step: Step, prompt: str | Sequence[str] = "", sampling: Sampling = DEFAULT, **how: Unpack[Drawing]
    ) -> Iterator[Tensor]:
        """As `extend`, after one text or several."""
        given = self.prompt([prompt] if isinstance(prompt, str) else list(prompt))
        return self.extend(step, given, sampling, **how)

    def sample(
        self, step: Step, prompt: str | Sequence[str] = "", sampling: Sampling = DEFAULT, **how: Unpack[Drawing]
    ) -> Tensor:
        """New ids [B, n], pad behind the end of a row; `texts` turns them into strings. Settings as in `extend`."""
        return torch.stack(list(self.stream(step, prompt, sampling, **how)), dim=1)

    def write(self, step: Step, given: Batch, sampling: Sampling, **how: Unpack[Drawing]) -> Iterator[list[str]]:
        """Yields what has been added to each row's text, whole characters only, "" where nothing is certain yet.

        The pieces of a row are its text up to the end or stop text. Settings as in `extend`.
        """
        writers = self.writers(given, sampling)
        for _ in self.extend(step, given, sampling, writers=writers, **how):
            yield [writer.take() for writer in writers]
        yield [writer.finish() for writer in writers]

    def writers(self, given: Batch, sampling: Sampling) -> list[Writer]:
        """A writer for each row of prompts."""
        tails = given["ids"][:, -CONTEXT:].tolist()
        real = given["mask"][:, -CONTEXT:].tolist() if "mask" in given else [[True] * len(t) for t in tails]
        before = [[i for i, r in zip(t, m, strict=True) if r] for t, m in zip(tails, real, strict=True)]
        return [Writer(self.tokenizer, sampling.stop, ids) for ids in before]

    def ends(self, sampling: Sampling = DEFAULT) -> frozenset[int]:
        """The ids that end a row."""
        own = self.tokenizer.ends if sampling.eos is None else sampling.eos
        named = {self.tokenizer.special(stop) for stop in sampling.stop}
        return frozenset(i for i in {*own, *named} if i is not None)

    def texts(self, ids: Tensor, sampling: Sampling = DEFAULT) -> list[str]:
        """Rows of ids [B, n] as strings, cut at the first end and before the first stop text."""
        out, ends = [], self.ends(sampling)
        for row in ids.tolist():
            end = next((at for at, token in enumerate(row) if token in ends), len(row))
            text = self.tokenizer.decode(row[:end])
            out.append(text[: min((text.find(s) for s in sampling.stop if s in text), default=len(text))])
        return out
