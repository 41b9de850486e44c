"""Images to tokens, and a class read from the query token behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.base import Batch, Loss, Modality, Raw, Step, Tokens
from modalities.text.borrowing import BorrowsText
from modalities.vision.files import to_tensor
from modalities.vision.towers import grid_positions

if TYPE_CHECKING:
    from modalities.vision.spec import VisionSpec


class Vision(BorrowsText):
    """A row is the image's tokens (one bidirectional span), then a query token, then, where the answer is given in
    words, all but the last token of the class name. Everything behind the image is causal."""

    incremental: ClassVar[bool] = False
    place: Tensor
    names: Tensor

    def __init__(self, spec: VisionSpec, dim: int, text: Modality | None) -> None:
        super().__init__()
        self.spec = spec
        self.tower = spec.tower.build(spec.size, spec.channels, dim)
        self.query = nn.Parameter(torch.randn(dim) * 0.02)
        self.register_buffer("place", grid_positions(self.tower.grid), persistent=False)
        if spec.answer == "class":
            self.head = nn.Linear(dim, spec.classes)
        else:
            self.borrow(text, dim)
            self.register_buffer("names", self._name_table(), persistent=False)

    def _name_table(self) -> Tensor:
        """Token ids of each class name with its end mark, [classes, L], -1 behind the end."""
        names = self.spec.names or tuple(str(i) for i in range(self.spec.classes))
        tokenizer = self.text.tokenizer
        rows = [[*tokenizer.encode(name), tokenizer.eos] for name in names]
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])

    def example(self, raw: Raw) -> dict[str, Tensor]:
        """{"image": float32 [C, size, size] in [-1, 1], "label": int64, -1 where the raw example has none}."""
        image = to_tensor(raw["image"], self.spec.size, self.spec.channels)
        label = int(raw.get("label", -1))
        if label >= self.spec.classes:
            raise ValueError(f"label: got {label}, expected 0..{self.spec.classes - 1}; raise vision's `classes`")
        return {"image": image, "label": torch.tensor(label)}

    def collate(self, examples: Sequence[Mapping[str, Tensor]], generator: torch.Generator) -> Batch:
        """{"image" [B, C, H, W], "label" [B]}."""
        return {key: torch.stack([e[key] for e in examples]) for key in ("image", "label")}

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """In training mode, moves each image by up to `shift` pixels; edge pixels are repeated."""
        reach = self.spec.shift
        if not reach or not self.training:
            return batch
        image = batch["image"]
        size = self.spec.size
        offset = torch.randint(0, 2 * reach + 1, (2, len(image), 1), generator=generator).to(image.device)
        index = (torch.arange(size, device=image.device) + offset - reach).clamp(0, size - 1)
        rows = torch.arange(len(image), device=image.device).view(-1, 1, 1)
        moved = image.permute(0, 2, 3, 1)[rows, index[0][:, :, None], index[1][:, None, :]]
        return batch | {"image": moved.permute(0, 3, 1, 2)}

    def encode(self, batch: Batch) -> Tokens:
        """Tokens [B, h * w + 1 (+ L - 1)] on two position axes; the query stands behind the grid's last corner."""
        patches = self.tower(batch["image"])
        rows, count, dim = patches.shape
        parts = [patches, self.query.to(patches).expand(rows, 1, dim)]
        ids = torch.full((rows, count + 1), -1, device=patches.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        if self.spec.answer == "text":
            answer = self.names[batch["label"].clamp(min=0)]
            read = answer[:, 1:] >= 0  # the end mark is answered and never read
            words = answer[:, :-1].masked_fill(~read, -1)
            parts.append(self.text.embed(words.clamp(min=0)))
            ids, mask = torch.cat([ids, words], 1), torch.cat([mask, read], 1)
        behind = max(self.tower.grid) + torch.arange(ids.shape[1] - count, device=ids.device)
        position = torch.cat([self.place, behind[:, None].expand(-1, 2)])
        image_part = torch.arange(ids.shape[1], device=ids.device) < count
        return Tokens(
            embedding=torch.cat(parts, dim=1),
            mask=mask,
            position=position.expand(rows, -1, -1),
            span=(~image_part).long().expand(rows, -1),
            bidirectional=image_part.expand(rows, -1),
            ids=ids,
        )

    def decode(self, hidden: Tokens) -> Tensor:
        """Class logits [B, classes]; where the answer is text, its token logits [B, L, vocabulary]."""
        start = len(self.place)
        if self.spec.answer == "text":
            return self.text.logits(hidden.embedding[:, start:]).float()
        return self.head(hidden.embedding[:, start]).float()

    def _negative_log(self, hidden: Tokens, label: Tensor) -> Tensor:
        """-log p(label | image) of each row [B]; for text the sum over the tokens of the name."""
        logits = self.decode(hidden)
        if self.spec.answer == "class":
            return F.cross_entropy(logits, label, reduction="none", ignore_index=-1)
        target = torch.where(label[:, None] < 0, -1, self.names[label.clamp(min=0)])
        return F.cross_entropy(logits.transpose(1, 2), target, reduction="none", ignore_index=-1).sum(dim=1)

    def loss(self, hidden: Tokens, batch: Batch) -> Loss:
        """Cross entropy of the class (or of its name's tokens), summed over images; images without label count not."""
        label = batch["label"]
        nats = self._negative_log(hidden, label)
        count = (label >= 0).sum()
        metrics = {}
        if self.spec.answer == "class":
            right = (self.decode(hidden).argmax(-1) == label).sum().detach()
            metrics["accuracy"] = (right, count)
        return Loss(nats.sum(), count, metrics)

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images with a label, and tokens: patches, queries and the words that are read."""
        label = batch["label"]
        tokens = torch.tensor(label.numel() * (len(self.place) + 1), device=label.device)
        if self.spec.answer == "text":
            tokens = tokens + (self.names[label.clamp(min=0)][:, 1:] >= 0).sum()
        return (label >= 0).sum(), tokens

    @torch.no_grad()
    def classify(self, step: Step, images: Tensor) -> Tensor:
        """Probabilities [B, classes] of images [B, C, size, size] in [-1, 1], as `example` makes them.

        Where the answer is text, each class name is scored by its likelihood and the scores are normalised.
        """
        if self.spec.answer == "class":
            blank = torch.full((len(images),), -1, device=images.device)
            return self.decode(step(self.encode({"image": images, "label": blank}))).softmax(-1)
        scores = []
        for name in range(self.spec.classes):
            label = torch.full((len(images),), name, device=images.device)
            scores.append(-self._negative_log(step(self.encode({"image": images, "label": label})), label))
        return torch.stack(scores, dim=1).softmax(-1)

    def sample(self, step: Step, images: Tensor) -> Tensor:
        """The likeliest class [B] of each image, int64."""
        return self.classify(step, images).argmax(-1)
