"""Names of speakers to indices, kept in a buffer so that they are saved with the weights."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

LENGTH = 32  # bytes of a name


class Voices(nn.Module):
    """Index 0 is the unknown speaker; 1 .. N are the N most frequent speakers of the training data.

    names  [N, 32] uint8, UTF-8 bytes filled up with zeros
    """

    names: Tensor

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("names", torch.zeros(count, LENGTH, dtype=torch.uint8))
        self.table = nn.Embedding(count + 1, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)

    def fit(self, speakers: Iterable[str | None]) -> None:
        """Takes the most frequent names; ties and order by name, so the result does not depend on the data's order."""
        counted = Counter(s for s in speakers if s)
        most = sorted(counted, key=lambda s: (-counted[s], s))[: len(self.names)]
        self.names.zero_()
        for i, name in enumerate(sorted(most)):
            code = name.encode()[:LENGTH]
            self.names[i, : len(code)] = torch.tensor(list(code), dtype=torch.uint8)

    def known(self) -> list[str]:
        """The names, in the order of their indices from 1 on."""
        rows = (bytes(row.tolist()).rstrip(b"\0") for row in self.names.cpu())
        return [row.decode(errors="ignore") for row in rows if row]

    def index(self, speaker: str | None, *, strict: bool = False) -> int:
        """The index of a name; None and, unless `strict`, a name not known are 0. Strict raises ValueError."""
        known = self.known()
        name = speaker.encode()[:LENGTH].decode(errors="ignore") if speaker else None
        if name in known:
            return known.index(name) + 1
        if name is None or not strict:
            return 0
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"speaker: got {speaker!r}, expected one of {known} or none{hint}")

    def forward(self, index: Tensor) -> Tensor:
        """Index [B] to embeddings [B, D]."""
        embedded: Tensor = self.table(index)
        return embedded
