"""Towers: images [B, C, H, W] in [-1, 1] to a grid of token embeddings [B, h * w, D]. The socket "tower"."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Tower(nn.Module):
    """Images to token embeddings. `grid` is (rows, columns); tokens come row by row."""

    grid: tuple[int, int]

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] float in [-1, 1] to [B, rows * columns, D]."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """What turns an image into tokens."""

    kind: ClassVar[str] = "tower"

    def build(self, size: int, channels: int, dim: int) -> Tower:
        """The module for square images with `size` pixels a side and a trunk of width `dim`."""
        raise NotImplementedError

    def parameters(self, size: int, channels: int, dim: int) -> int:
        """Number of parameters of the built tower."""
        raise NotImplementedError

    def check(self, size: int) -> None:
        """Raises ValueError where images of this size do not fit. Any size fits by default."""


@dataclass(frozen=True, kw_only=True)
class PatchTowerSpec(TowerSpec):
    """Square patches through one linear layer, plus a learned embedding of each place.

    patch   side of a patch in pixels; has to divide the image size
    """

    patch: int = 4

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ValueError(f"patch: got {self.patch}, expected at least 1")

    def build(self, size: int, channels: int, dim: int) -> PatchTower:
        return PatchTower(size, channels, self.patch, dim)

    def parameters(self, size: int, channels: int, dim: int) -> int:
        return (self.patch**2 * channels + 1) * dim + (size // self.patch) ** 2 * dim

    def check(self, size: int) -> None:
        check_patch(size, self.patch)


def check_patch(size: int, patch: int) -> None:
    """Raises ValueError unless `patch` divides `size`."""
    if size % patch:
        fits = [n for n in range(1, size + 1) if size % n == 0]
        near = min(fits, key=lambda n: abs(n - patch))
        raise ValueError(f"patch: got {patch}, expected a divisor of the image size {size} (for example {near})")


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] to [B, (H / p) * (W / p), C * p * p], patches row by row."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpatchify(patches: Tensor, patch: int, size: int) -> Tensor:
    """Inverse of `patchify` for square images: [B, N, C * p * p] to [B, C, size, size]."""
    batch, side = len(patches), size // patch
    cut = patches.reshape(batch, side, side, -1, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, size, size)


def grid_positions(grid: tuple[int, int]) -> Tensor:
    """Rotary positions [rows * columns, 2]: (row, column) of each token, int64."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([rows.reshape(-1), columns.reshape(-1)], dim=-1)


class PatchTower(Tower):
    """Linear patch embedding with a learned embedding per place (Dosovitskiy et al. 2021, ViT)."""

    def __init__(self, size: int, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        check_patch(size, patch)
        self.patch = patch
        self.grid = (size // patch, size // patch)
        self.project = nn.Linear(channels * patch * patch, dim)
        self.place = nn.Parameter(torch.randn(self.grid[0] * self.grid[1], dim) * 0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(patchify(images, self.patch).to(self.project.weight.dtype)) + self.place


@dataclass(frozen=True, kw_only=True)
class TimmTowerSpec(TowerSpec):
    """Any timm model with spatial features, without its head, and a linear projection to the trunk.

    name         a timm model name, such as vit_tiny_patch16_224 or resnet18
    pretrained   whether timm loads its published weights (through the Hugging Face hub and its cache)
    trainable    whether the timm model learns too; the projection always does
    """

    name: str
    pretrained: bool = False
    trainable: bool = True

    def build(self, size: int, channels: int, dim: int) -> TimmTower:
        return TimmTower(timm_model(self.name, self.pretrained, size, channels), size, channels, dim, self.trainable)

    def parameters(self, size: int, channels: int, dim: int) -> int:
        with torch.device("meta"):
            model = timm_model(self.name, False, size, channels)
        return sum(p.numel() for p in model.parameters()) + (model.num_features + 1) * dim


def timm_model(name: str, pretrained: bool, size: int, channels: int) -> Any:
    """A timm model without head for square images. Raises ValueError for an unknown name, with the nearest ones."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"name: timm has no model {name!r}" + (f"; nearest: {', '.join(near)}" if near else ""))
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0, "in_chans": channels}
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError:  # convolutional models take any size and know no img_size
        return timm.create_model(name, **options)


class TimmTower(Tower):
    """The last feature map of a timm model, projected to the trunk. Class and register tokens are left out."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, size: int, channels: int, dim: int, trainable: bool) -> None:
        super().__init__()
        self.model = model.requires_grad_(trainable)
        self.trainable = trainable
        self.project = nn.Linear(model.num_features, dim)
        config = model.pretrained_cfg
        for name, default in (("mean", 0.5), ("std", 0.5)):
            value = torch.tensor(config.get(name) or [default] * 3, dtype=torch.float32)
            value = value if channels == len(value) else value.mean().expand(channels)
            self.register_buffer(name, value.reshape(channels, 1, 1).clone(), persistent=False)
        with torch.no_grad():
            training, _ = self.model.training, self.model.eval()
            self.grid = self._features(torch.zeros(1, channels, size, size))[1]
            self.model.train(training and trainable)

    def train(self, mode: bool = True) -> TimmTower:
        """As usual, but a frozen model stays in evaluation mode (its batch-norm statistics must not move)."""
        super().train(mode)
        if not self.trainable:
            self.model.eval()
        return self

    def _features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Features [B, h * w, F] and the grid (h, w) of images [B, C, H, W] in [-1, 1]."""
        scaled = ((images + 1) / 2 - self.mean) / self.std
        out = self.model.forward_features(scaled.to(self.project.weight.dtype))
        if out.ndim == 3:
            out = out[:, getattr(self.model, "num_prefix_tokens", 0) :]
            embed = getattr(self.model, "patch_embed", None)
            side = round(out.shape[1] ** 0.5)
            return out, getattr(embed, "grid_size", None) or (side, side)
        if out.shape[1] == self.model.num_features:
            out = out.movedim(1, -1)
        return out.flatten(1, 2), (int(out.shape[1]), int(out.shape[2]))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self._features(images)[0])
