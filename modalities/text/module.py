"""The text modality: ids to tokens, hidden states to logits, cross entropy, generation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from modalities.base import Batch, Loss, Raw, Tokens, pad_rows
from modalities.text import generation_config
from modalities.text.continuing import Continuing
from modalities.text.cross_entropy import IGNORE, linear_cross_entropy
from modalities.text.files_tokenizer import FilesTokenizer
from modalities.text.head import head_product
from modalities.text.norm_head import normalised
from modalities.text.sampling import Sampling
from modalities.text.spec import TextSpec
from modalities.text.tokenizer_files import copy_text_files


class Text(Continuing):
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
        self._sampling: Sampling | None = None
        self._set = False  # whether `sampling` is not the folder's own

    def attach(self, folder: Path) -> None:
        """Names the folder the model was loaded from: its tokenizer files are read when they are first needed, and
        copied beside the weights when the model is saved. Nothing is read here, and none of them has to be there."""
        self.folder, self._sampling, self._set = folder, None, False
        if isinstance(self.tokenizer, FilesTokenizer):
            self.tokenizer.attach(folder)

    @property
    def sampling(self) -> Sampling:
        """How text is continued where nothing else is said: as generation_config.json of the folder says, else at a
        temperature of 0.8. May be set."""
        if self._sampling is None:
            read = None if self.folder is None else generation_config.read(self.folder)
            self._sampling = Sampling(temperature=0.8) if read is None else read
        return self._sampling

    @sampling.setter
    def sampling(self, value: Sampling) -> None:
        self._sampling, self._set = value, True

    def write_files(self, target: Path) -> list[Path]:
        """Writes what belongs beside the weights into a folder: the files of the folder the model was loaded from, and
        generation_config.json where `sampling` was set. Returns the files written."""
        written = []
        if isinstance(self.tokenizer, FilesTokenizer) and self.folder is not None and not self.folder.is_dir():
            warnings.warn(f"{self.folder}: is gone, so no tokenizer is written beside the weights", stacklevel=2)
        if self._set:
            tokenizer = self.tokenizer
            ids = {"eos_token_id": list(tokenizer.ends), "pad_token_id": tokenizer.pad}
            written.append(generation_config.write(target, self.sampling, ids))
        return written + ([] if self.folder is None else copy_text_files(self.folder, target))

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [...] to embeddings [..., D]."""
        found = self.embedding(ids)
        return found if self.spec.scale == 1 else found * self.spec.scale

    @property
    def head_weight(self) -> Tensor:
        """[V, D] of the map to logits."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return weight if self.spec.head_norm == "none" else normalised(weight, self.spec.head_norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] to logits [..., V]."""
        found = head_product(hidden, self.head_weight, self.head_bias)
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
        total, hits = self.cross_entropy(hidden.embedding, batch["target"])
        count = (batch["target"] != IGNORE).sum()
        return Loss(total, count, {"accuracy": (hits, count)})

    def cross_entropy(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [..., D] and the ids [...] that follow (-100 counts nothing) to the sum of cross entropies and
        the number of hits; see linear_cross_entropy."""
        weight, bias = self.head_weight, self.head_bias
        return linear_cross_entropy(hidden.flatten(0, -2), weight, bias, target.flatten(), self.spec.logit_scale)

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target ids, and ids that are not padding."""
        return (batch["target"] != IGNORE).sum(), batch["mask"].sum()
