"""Noisy images to tokens, predictions back to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.base import Batch, Loss, Modality, Raw, Step, Tokens
from modalities.diffusion.conditions import TimeEmbedding, behind_prompt, class_labels, pad_prompts, prompt_ids
from modalities.diffusion.spec import DiffusionSpec
from modalities.text.borrowing import BorrowsText
from modalities.vision.files import from_tensor, to_tensor
from modalities.vision.towers import check_patch, grid_positions, patchify, unpatchify


class Diffusion(BorrowsText):
    """A row is the prompt (where the condition is text; causal), then the noisy image's patches as one bidirectional
    span. The patches are always the last tokens of a row; padding lies between prompt and image."""

    incremental: ClassVar[bool] = False
    place: Tensor

    def __init__(self, spec: DiffusionSpec, dim: int, text: Modality | None) -> None:
        super().__init__()
        self.spec = spec
        self.objective = spec.objective.build()
        self.autoencoder = spec.autoencoder.build(spec.channels)
        self.channels, self.side = spec.autoencoder.latent(spec.size, spec.channels)
        check_patch(self.side, spec.patch)
        values, grid = self.channels * spec.patch**2, (self.side // spec.patch,) * 2
        self.project = nn.Linear(values, dim)
        self.place_embedding = nn.Parameter(torch.randn(grid[0] * grid[1], dim) * 0.02)
        self.time = TimeEmbedding(dim)
        self.head = nn.Linear(dim, values)
        self.register_buffer("place", grid_positions(grid), persistent=False)
        if spec.condition == "class":
            self.table = nn.Embedding(spec.classes + 1, dim)  # the last row is the free condition
            nn.init.normal_(self.table.weight, std=0.5)  # DiT's 0.02 takes twice as many steps to tell classes apart
        else:
            self.borrow(text, dim)

    def example(self, raw: Raw) -> dict[str, Tensor]:
        """{"image": float32 [C, size, size] in [-1, 1]} and "label" (int64) or "ids" (int64 [n]), by the condition."""
        image = to_tensor(raw["image"], self.spec.size, self.spec.channels)
        key = "label" if self.spec.condition == "class" else "text"
        if key not in raw:
            raise ValueError(f"{key}: missing in a raw example, but condition is {self.spec.condition}")
        return {"image": image} | {k: v[0] for k, v in self._condition([raw[key]]).items() if k != "mask"}

    def _condition(self, values: Sequence[int] | Sequence[str] | Tensor) -> Batch:
        """Class numbers as {"label" [B]}, prompts as {"ids" [B, L], "mask" [B, L]}."""
        if self.spec.condition == "class":
            return {"label": class_labels(values, self.spec.classes)}
        return pad_prompts([prompt_ids(self.text.tokenizer, value, self.spec.prompt) for value in values])

    def collate(self, examples: Sequence[Mapping[str, Tensor]], generator: torch.Generator) -> Batch:
        """{"image" [B, C, H, W]} and {"label" [B]} or {"ids" [B, L], "mask" [B, L]}."""
        batch = {"image": torch.stack([e["image"] for e in examples])}
        if self.spec.condition == "class":
            return batch | {"label": torch.stack([e["label"] for e in examples])}
        return batch | pad_prompts([e["ids"] for e in examples])

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Adds the noisy image, its time and the target, and drops the condition of some rows."""
        clean = self.autoencoder.encode(batch["image"])
        count = len(clean)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        t = self.objective.draw(count, generator).to(clean.device)
        dropped = (torch.rand(count, generator=generator) < self.spec.drop).to(clean.device)
        added = {
            "noisy": self.objective.mix(clean, noise, t),
            "t": t,
            "target": patchify(self.objective.target(clean, noise, t), self.spec.patch),
        }
        return batch | added | self._free(batch, dropped)

    def _free(self, batch: Batch, dropped: Tensor) -> Batch:
        """The condition of a batch, taken away where `dropped` [B]: the last class, or an empty prompt."""
        if self.spec.condition == "class":
            return {"label": batch["label"].masked_fill(dropped.to(batch["label"].device), self.spec.classes)}
        mask = batch["mask"].clone()
        mask[:, 1:] &= ~dropped.to(mask.device)[:, None]
        return {"mask": mask}

    def encode(self, batch: Batch) -> Tokens:
        """Tokens of prepared images: [B, N, D], or [B, L + N, D] with a prompt of L tokens."""
        pixels = patchify(batch["noisy"], self.spec.patch).to(self.project.weight.dtype)
        patches = self.project(pixels) + self.place_embedding
        cond = self.time(batch["t"])
        if self.spec.condition == "class":
            cond = cond + self.table(batch["label"])
        if self.spec.inject != "cond":
            patches = patches + cond[:, None]
        count, rows, device = patches.shape[1], len(patches), patches.device
        image = Tokens(
            embedding=patches,
            position=self.place.expand(rows, -1, -1),
            span=torch.ones(rows, count, dtype=torch.int64, device=device),
            bidirectional=torch.ones(rows, count, dtype=torch.bool, device=device),
            cond=None if self.spec.inject == "token" else cond,
        )
        return (
            image
            if self.spec.condition == "class"
            else behind_prompt(image, batch["ids"], batch["mask"], self.text.embed(batch["ids"]))
        )

    def decode(self, hidden: Tokens) -> Tensor:
        """The prediction for each patch [B, N, C * patch * patch], float32."""
        return self.head(hidden.embedding[:, -len(self.place) :]).float()

    def loss(self, hidden: Tokens, batch: Batch) -> Loss:
        """Squared error of the prediction: mean over the values of a patch, sum over patches."""
        error = F.mse_loss(self.decode(hidden), batch["target"].float(), reduction="none").mean(dim=-1)
        return Loss(error.sum(), torch.tensor(error.numel(), device=error.device))

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Patches, and patches with the prompts' tokens."""
        patches = torch.tensor(len(batch["target"]) * len(self.place), device=batch["target"].device)
        return patches, patches + batch["mask"].sum() if self.spec.condition == "text" else patches

    @torch.no_grad()
    def sample(
        self,
        step: Step,
        conditions: Sequence[int] | Sequence[str] | Tensor,
        *,
        generator: torch.Generator,
        steps: int | None = None,
        guidance: float | None = None,
        scheduler: str | None = None,
    ) -> Tensor:
        """Images uint8 [B, H, W, C] for class numbers or prompts; equal generators give equal images.

        steps      predictions per image (spec's where left out)
        guidance   classifier-free guidance (spec's where left out); 1 is the conditioned model alone
        scheduler  euler for flow; ddim or ddpm for ddpm; the first where left out
        """
        weight = self.spec.guidance if guidance is None else guidance
        device = self.place_embedding.device
        batch = {k: v.to(device) for k, v in self._condition(conditions).items()}
        count = len(conditions)
        noise = torch.randn(count, self.channels, self.side, self.side, generator=generator).to(device)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            return self._guided(step, batch, noisy, t, weight)

        latents = self.objective.sample(
            predict,
            noise,
            steps=self.spec.steps if steps is None else steps,
            generator=generator,
            clip=self.autoencoder.clip,
            scheduler=scheduler,
        )
        return from_tensor(self.autoencoder.decode(latents))

    def _guided(self, step: Step, condition: Batch, noisy: Tensor, t: Tensor, weight: float) -> Tensor:
        """The prediction [B, C, h, w] under classifier-free guidance (Ho and Salimans 2022), in one call of `step`."""
        batch = condition
        if weight != 1:
            free = condition | self._free(condition, torch.ones(len(noisy), dtype=torch.bool))
            batch = {k: torch.cat([condition[k], free[k]]) for k in condition}
            noisy, t = torch.cat([noisy, noisy]), torch.cat([t, t])
        patches = self.decode(step(self.encode(batch | {"noisy": noisy, "t": t})))
        out = unpatchify(patches, self.spec.patch, self.side)
        if weight == 1:
            return out
        with_condition, without = out.chunk(2)
        return without + weight * (with_condition - without)
