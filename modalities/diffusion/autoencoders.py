"""Where images are generated: in pixels, or in the latents of a diffusers autoencoder. The socket "autoencoder"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modalities.vision.towers import check_patch


class Autoencoder(nn.Module):
    """Images [B, C, H, W] in [-1, 1] to latents [B, c, h, w] of about unit scale, and back.

    clip   whether latents, being pixels, lie in [-1, 1]
    """

    clip: ClassVar[bool] = False

    def encode(self, images: Tensor) -> Tensor:
        """Images to latents, without randomness."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpec:
    """What lies between images and the space they are generated in."""

    kind: ClassVar[str] = "autoencoder"

    def build(self, channels: int) -> Autoencoder:
        """The module for images with `channels` channels."""
        raise NotImplementedError

    def latent(self, size: int, channels: int) -> tuple[int, int]:
        """(channels, side) of the latents of square images with `size` pixels a side."""
        raise NotImplementedError

    def parameters(self, channels: int) -> int:
        """Number of its (frozen) parameters."""
        raise NotImplementedError

    def check(self, size: int, channels: int, patch: int) -> None:
        """Raises ValueError where the patch does not divide the latents' side."""
        check_patch(self.latent(size, channels)[1], patch)


@dataclass(frozen=True, kw_only=True)
class PixelsSpec(AutoencoderSpec):
    """Images are generated pixel by pixel. It has no keys."""

    def build(self, channels: int) -> Pixels:
        return Pixels()

    def latent(self, size: int, channels: int) -> tuple[int, int]:
        return channels, size

    def parameters(self, channels: int) -> int:
        return 0


class Pixels(Autoencoder):
    """The identity."""

    clip: ClassVar[bool] = True

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@dataclass(frozen=True, kw_only=True)
class DiffusersSpec(AutoencoderSpec):
    """A diffusers AutoencoderKL, frozen. Without a name it is built from the other keys, and its weights come with
    the model's checkpoint.

    name     hub id or folder of a trained AutoencoderKL; the keys below are then ignored in favour of its config
    blocks   channels of each resolution; every block but the last halves the side
    layers   residual layers of each block
    latent_channels   channels of the latents
    groups   groups of its group norms; has to divide every entry of blocks
    scale    what latents are multiplied by, so that they have about unit deviation
    """

    name: str | None = None
    blocks: tuple[int, ...] = (64, 128, 256)
    layers: int = 1
    latent_channels: int = 4
    groups: int = 32
    scale: float = 0.18215

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("blocks: got none, expected at least one number of channels")
        odd = [n for n in self.blocks if n < 1 or n % self.groups]
        if odd:
            raise ValueError(f"blocks: got {odd[0]}, expected multiples of groups ({self.groups})")
        if self.scale <= 0:
            raise ValueError(f"scale: got {self.scale}, expected a positive number")

    def config(self, channels: int) -> Mapping[str, Any]:
        """The configuration of the AutoencoderKL; a named one is read from its folder or the hub's cache."""
        from diffusers import AutoencoderKL

        if self.name is not None:
            return AutoencoderKL.load_config(self.name)
        count = len(self.blocks)
        return {
            "in_channels": channels,
            "out_channels": channels,
            "down_block_types": ("DownEncoderBlock2D",) * count,
            "up_block_types": ("UpDecoderBlock2D",) * count,
            "block_out_channels": self.blocks,
            "layers_per_block": self.layers,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.groups,
            "scaling_factor": self.scale,
        }

    def build(self, channels: int) -> DiffusersAutoencoder:
        from diffusers import AutoencoderKL

        config = self.config(channels)
        if config["in_channels"] != channels:
            raise ValueError(f"name: {self.name} reads {config['in_channels']} channels, the images have {channels}")
        model = AutoencoderKL.from_config(config) if self.name is None else AutoencoderKL.from_pretrained(self.name)
        return DiffusersAutoencoder(model)

    def latent(self, size: int, channels: int) -> tuple[int, int]:
        config = self.config(channels)
        return config["latent_channels"], size // 2 ** (len(config["block_out_channels"]) - 1)

    def check(self, size: int, channels: int, patch: int) -> None:
        if self.name is not None:  # its config may not be here yet; `build` looks again
            return
        factor = 2 ** (len(self.blocks) - 1)
        if size % factor:
            raise ValueError(f"blocks: got {len(self.blocks)}, but the image size {size} is no multiple of {factor}")
        check_patch(size // factor, patch)

    def parameters(self, channels: int) -> int:
        from diffusers import AutoencoderKL

        with torch.device("meta"):
            return sum(p.numel() for p in AutoencoderKL.from_config(self.config(channels)).parameters())


class DiffusersAutoencoder(Autoencoder):
    """A frozen AutoencoderKL: the mean of its posterior, shifted and scaled as its config says."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.scale = float(model.config.scaling_factor)
        self.shift = float(model.config.shift_factor or 0.0)

    def train(self, mode: bool = True) -> DiffusersAutoencoder:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        return (self.model.encode(images.to(weight)).latent_dist.mode() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        return self.model.decode((latents / self.scale + self.shift).to(weight), return_dict=False)[0].to(latents)
