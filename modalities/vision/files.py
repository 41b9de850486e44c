"""Images from and to files: every mode becomes uint8 [H, W, 1 or 3], every failure names its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights PIL uses as well


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """An image file as uint8 [H, W, C]: C = 1 for grey files, 3 for all others; the first frame of an animation.

    Transparent pixels (RGBA, LA, palettes with transparency) are laid over white, 16-bit grey is scaled to 8 bits,
    palettes and CMYK become RGB, and the camera's orientation tag is applied.
    Raises FileNotFoundError, or ValueError naming the file when it is empty, corrupt or of an unreadable kind.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty, expected an image ({', '.join(SUFFIXES)})")
    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image file that can be read; expected {', '.join(SUFFIXES)}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: a corrupt or oversized image ({error}); replace or remove it") from error
    return _to_uint8(image, path)


def _to_uint8(image: Image, path: Path) -> NDArray[np.uint8]:
    """uint8 [H, W, 1 or 3] of a PIL image of any mode but float."""
    from PIL import Image as images

    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"{path}: grey values {grey.min()}..{grey.max()}, expected 16 bits (0..65535)")
        return np.round(grey / 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise ValueError(f"{path}: a floating-point image has no fixed white; save it with 8 or 16 bits")
    target = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = images.alpha_composite(images.new("RGBA", image.size, (255, 255, 255, 255)), image)
    pixels = np.array(image.convert(target), dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def to_tensor(image: NDArray[np.uint8], size: int, channels: int) -> torch.Tensor:
    """uint8 [H, W, 1 or 3] to float32 [channels, size, size] in [-1, 1].

    Another size is resized: the shorter side becomes `size` (antialiased bilinear), then the centre is cut out.
    Grey is repeated to three channels; colour becomes grey by its BT.601 luminance.
    Raises ValueError for an array of another dtype or shape.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"image: got {image.dtype} {list(image.shape)}, expected uint8 [H, W, 1 or 3]")
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    if channels == 1 and len(pixels) == 3:
        pixels = (pixels * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(0, keepdim=True)
    elif channels == 3 and len(pixels) == 1:
        pixels = pixels.expand(3, -1, -1)
    if pixels.shape[-2:] != (size, size):
        pixels = _cover(pixels, size)
    return (pixels / 127.5 - 1).clamp(-1, 1)


def _cover(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """[C, H, W] scaled so that its shorter side is `size`, centre crop [C, size, size]."""
    height, width = pixels.shape[-2:]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    scaled = F.interpolate(pixels[None], target, mode="bilinear", align_corners=False, antialias=True)[0]
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return scaled[:, top : top + size, left : left + size]


def from_tensor(images: torch.Tensor) -> torch.Tensor:
    """float [..., C, H, W] in [-1, 1] to uint8 [..., H, W, C]; values outside are cut off."""
    scaled = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.movedim(-3, -1)


def grid(images: NDArray[np.uint8], columns: int, tile: int = 48, gap: int = 2) -> NDArray[np.uint8]:
    """Images [N, H, W, C] as one picture with `columns` per row, white gaps between.

    Small images are enlarged by whole factors (nearest pixel) until their longer side is about `tile` pixels.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images: got shape {list(images.shape)}, expected [N, H, W, C] with N >= 1")
    factor = max(1, round(tile / max(images.shape[1:3])))
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width, channels = large.shape[1:]
    rows = -(-len(large) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(large):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        sheet[top : top + height, left : left + width] = image
    return sheet


def write_png(path: str | Path, image: NDArray[np.uint8]) -> Path:
    """Writes uint8 [H, W, 1 or 3] as PNG: beside its place first, then renamed, so that no half file is ever seen."""
    from PIL import Image

    path = Path(path)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"{path}: got {image.dtype} {list(image.shape)}, expected uint8 [H, W, 1 or 3]")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(beside, format="PNG")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
