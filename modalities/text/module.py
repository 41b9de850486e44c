"""The text modality: ids to tokens, hidden states to logits, cross entropy, generation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.base import Batch, Loss, Modality, Raw, Step, Tokens, pad_rows
from modalities.text.files_tokenizer import FilesTokenizer
from modalities.text.sampling import draw
from modalities.text.spec import TextSpec

IGNORE = -100


class Text(Modality):
    """Text as causal tokens of a trunk of width `dim`.

    Every row begins with the tokenizer's bos id and predicts the id that follows each position. Other modalities
    borrow `tokenizer`, `embed` and `logits`.
    """

    def __init__(self, spec: TextSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.tokenizer = spec.tokenizer.build()
        rows = spec.rows(self.tokenizer.vocab_size)
        self.embedding = nn.Embedding(rows, dim)
        # As a tied head on a normed state (length sqrt(D)) this gives logits of deviation 1.
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.head: nn.Linear | None = None
        if not spec.tie:
            self.head = nn.Linear(dim, rows, bias=False)
            nn.init.normal_(self.head.weight, std=0.02)
        self.head_bias = nn.Parameter(torch.zeros(rows)) if spec.head_bias else None
        self.folder: Path | None = None

    def attach(self, folder: Path) -> None:
        """Names the folder the model was loaded from: its tokenizer files are read when they are first needed, and
        copied beside the weights when the model is saved. Nothing is read here, and none of them has to be there."""
        self.folder = folder
        if isinstance(self.tokenizer, FilesTokenizer):
            self.tokenizer.attach(folder)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [...] to embeddings [..., D]."""
        found = self.embedding(ids)
        return found if self.spec.scale == 1 else found * self.spec.scale

    @property
    def head_weight(self) -> Tensor:
        """[V, D] of the map to logits."""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] to logits [..., V]."""
        found = F.linear(hidden, self.head_weight, self.head_bias)
        return found if self.spec.logit_scale == 1 else found * self.spec.logit_scale

    def example(self, raw: Raw) -> dict[str, Tensor]:
        """{"text": str} to {"ids": int64 [n]}, eos included unless the raw says `ends: False` (more text follows).

        Raises ValueError where there is no text in it.
        """
        text = raw.get("text")
        if not isinstance(text, str):
            raise ValueError(f"text: expected a string under the key 'text', got {type(text).__name__}")
        ids = self.tokenizer.encode(text)
        if not ids:
            raise ValueError("text: got an empty text, expected at least one character; leave empty rows out")
        return {"ids": torch.tensor(ids + [self.tokenizer.eos] * bool(raw.get("ends", True)))}

    def collate(self, examples: Sequence[Mapping[str, Tensor]], generator: torch.Generator) -> Batch:
        """Random crops of `length` ids, padded: input [B, S] (bos first), target [B, S] (-100 on padding), mask."""
        rows = []
        for example in examples:
            ids = example["ids"]
            spare = max(len(ids) - self.spec.length, 0)
            start = int(torch.randint(spare + 1, (), generator=generator))
            rows.append(ids[start : start + self.spec.length])
        return self.batch(rows)

    def batch(self, rows: Sequence[Tensor]) -> Batch:
        """Rows of target ids [n_i] to a padded batch; the input is the row shifted by one with bos in front."""
        target, mask = pad_rows(rows, IGNORE)
        first = torch.full((len(rows), 1), self.tokenizer.bos)
        shifted = torch.cat([first, target[:, :-1]], dim=1)
        return {"ids": shifted.where(mask, self.tokenizer.pad), "target": target, "mask": mask}

    def encode(self, batch: Batch) -> Tokens:
        """A batch to tokens [B, S, D]; all-real rows carry their mask too."""
        return Tokens(embedding=self.embed(batch["ids"]), mask=batch["mask"], ids=batch["ids"])

    def decode(self, hidden: Tokens) -> Tensor:
        """Logits [B, S, V] of the next id at each position."""
        return self.logits(hidden.embedding)

    def loss(self, hidden: Tokens, batch: Batch) -> Loss:
        """Cross entropy in float32, in nats, summed over target tokens; metric: accuracy of the most likely id."""
        logits, target = self.decode(hidden).float(), batch["target"]
        total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="sum")
        real = target != IGNORE
        count = real.sum()
        hits = ((logits.detach().argmax(-1) == target) & real).sum()
        return Loss(total, count, {"accuracy": (hits.float(), count)})

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target ids, and ids that are not padding."""
        return (batch["target"] != IGNORE).sum(), batch["mask"].sum()

    def prompt(self, texts: Sequence[str]) -> Batch:
        """Prompts to ids [B, S] padded on the left (bos first), mask [B, S] and position [B, S, 1] from 0 at bos."""
        rows = [torch.tensor([self.tokenizer.bos, *self.tokenizer.encode(t)]) for t in texts]
        if not rows:
            raise ValueError("prompt: got an empty list, expected at least one text")
        flipped, mask = pad_rows([r.flip(0) for r in rows], self.tokenizer.pad)
        ids, mask = flipped.flip(1), mask.flip(1)
        return {"ids": ids, "mask": mask, "position": (mask.cumsum(1) - 1).clamp(min=0).unsqueeze(-1)}

    def stream(
        self,
        step: Step,
        prompt: str | Sequence[str] = "",
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Tensor]:
        """As `extend`, after one text or several."""
        given = self.prompt([prompt] if isinstance(prompt, str) else list(prompt))
        return self.extend(
            step, given, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            generator=generator, stop=stop,
        )  # fmt: skip

    @torch.no_grad()
    def extend(
        self,
        step: Step,
        given: Batch,
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        generator: torch.Generator | None,
        stop: Sequence[str] = (),
    ) -> Iterator[Tensor]:
        """Yields the next id of every row, int64 [B] on the CPU, as soon as it is drawn; `given` is as `prompt` makes
        it (rows without padding need no mask).

        A row that has drawn eos or one of the `stop` texts yields pad from then on; the stream ends with its last
        row. `step` must be fresh: it keeps what it has seen. Temperature 0 takes the most likely id and needs no
        generator; anything else draws from `generator`.
        Raises ValueError on impossible settings.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {max_new_tokens}, expected at least 1")
        device, position = self.embedding.weight.device, given["position"][:, -1:]
        banned = {self.tokenizer.pad, self.tokenizer.bos} - {self.tokenizer.eos}
        tokens = self._tokens({k: v.to(device) for k, v in given.items()})
        done = torch.zeros(len(position), dtype=torch.bool)
        history: list[list[int]] = [[] for _ in position]
        for _ in range(max_new_tokens):
            last = self.logits(step(tokens).embedding[:, -1])
            new = draw(last, temperature, top_k, top_p, generator, sorted(banned))
            new = new.masked_fill(done, self.tokenizer.pad)
            yield new
            for row, (seen, token) in enumerate(zip(history, new.tolist(), strict=True)):
                seen.append(token)
                done[row] |= token == self.tokenizer.eos or self._stopped(seen, stop)
            if bool(done.all()):
                return
            position = position + 1
            tokens = self._tokens({"ids": new.view(-1, 1).to(device), "position": position.to(device)})

    def sample(
        self,
        step: Step,
        prompt: str | Sequence[str] = "",
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        stop: Sequence[str] = (),
    ) -> Tensor:
        """New ids [B, n], pad behind the end of a row; `texts` turns them into strings. Settings as in `extend`."""
        drawn = self.stream(
            step, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            generator=generator, stop=stop,
        )  # fmt: skip
        return torch.stack(list(drawn), dim=1)

    def texts(self, ids: Tensor, stop: Sequence[str] = ()) -> list[str]:
        """Rows of ids [B, n] as strings, cut at the first eos and before the first `stop` text."""
        out = []
        for row in ids.tolist():
            end = row.index(self.tokenizer.eos) if self.tokenizer.eos in row else len(row)
            text = self.tokenizer.decode([i for i in row[:end] if i != self.tokenizer.pad])
            out.append(text[: min((text.find(s) for s in stop if s in text), default=len(text))])
        return out

    def _tokens(self, batch: Batch) -> Tokens:
        ids = batch["ids"]
        return Tokens(embedding=self.embed(ids), mask=batch.get("mask"), position=batch["position"], ids=ids)

    def _stopped(self, seen: Sequence[int], stop: Sequence[str]) -> bool:
        return bool(stop) and any(s in self.tokenizer.decode(seen) for s in stop)
