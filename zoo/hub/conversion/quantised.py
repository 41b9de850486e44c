"""Releases that store weights with scales of their own, read as plain weights: fp8 in blocks and MXFP4.

A quantised tensor of the files stands for the plain one that pieces ask for; it is made when it is read, one at a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.hub import tensors
from zoo.hub.conversion.fields import Fields
from zoo.hub.tensors import Stored, WeightsError

KEY = "quantization_config"
PLAIN = (torch.bfloat16, torch.float16, torch.float32)
EIGHT = (torch.float8_e4m3fn, torch.float8_e5m2)
# The numbers of E2M1 by their four bits, the sign first.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True)
class Quantised(Stored):
    """A tensor that several stored ones make up: its plain form, in the file of the first of them.

    parts  names in the files
    make   their values to the plain tensor
    """

    parts: Mapping[str, Stored]
    make: Callable[..., Tensor]

    def value(self, name: str, opened: Any) -> Tensor:
        """The plain tensor."""
        return self.make(*(self._part(name, part, opened) for name, part in self.parts.items()))

    def _part(self, name: str, part: Stored, opened: Any) -> Tensor:
        return part.value(name, opened) if part.file == self.file else tensors.read({name: part})[name]


class Method(ABC):
    """How a release is quantised.

    suffixes  behind the plain name, of numbers and of scales
    """

    suffixes: tuple[str, str]

    @abstractmethod
    def quantised(self, numbers: Stored) -> bool:
        """Whether a tensor of such a name is one."""

    @abstractmethod
    def shapes(self, numbers: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the plain tensor and of the scales."""

    @abstractmethod
    def plain(self, numbers: Tensor, scales: Tensor) -> Tensor:
        """The plain tensor: products in float32, or in a narrower type that holds them exactly."""

    def gather(self, stored: Mapping[str, Stored], dtype: torch.dtype, where: Path) -> dict[str, Stored]:
        """The files' tensors with plain ones of `dtype` in place of quantised ones.

        Raises WeightsError naming scales that are missing or do not fit, and tensors that are there in both forms.
        """
        found, used, problems = dict(stored), set[str](), []
        for plain, numbers, scales in self._pairs(stored):
            shape, grid = self.shapes(stored[numbers].shape)
            if scales not in stored or stored[scales].shape != grid:
                have = list(stored[scales].shape) if scales in stored else "nothing"
                problems.append(f"{scales}: expected {list(grid)}, got {have}")
                continue
            if plain != numbers and plain in stored:
                problems.append(f"{plain}: stored plain as well as quantised, expected one of both")
            parts = {name: stored[name] for name in (numbers, scales)}
            used |= parts.keys()
            found[plain] = Quantised(stored[numbers].file, shape, dtype, parts, self.plain)
        if problems:
            listed = "\n  ".join(problems)
            raise WeightsError(f"{where}: {len(problems)} quantised tensors do not fit:\n  {listed}")
        return {name: s for name, s in found.items() if name not in used or isinstance(s, Quantised)}

    def _pairs(self, stored: Mapping[str, Stored]) -> Iterator[tuple[str, str, str]]:
        """(plain name, that of the numbers, that of the scales)."""
        own, of_scales = self.suffixes
        for name, s in stored.items():
            if name.endswith(own) and self.quantised(s):
                plain = name.removesuffix(own)
                yield plain, name, plain + of_scales


@dataclass(frozen=True)
class BlockFp8(Method):
    """Eight-bit floats with a factor per block of rows and columns (DeepSeek-V3, arXiv 2412.19437, section 3.3); blocks
    at the edges may be cut.

    block  rows and columns
    """

    block: tuple[int, int]
    suffixes = ("", "_scale_inv")

    def quantised(self, numbers: Stored) -> bool:
        return numbers.dtype in EIGHT and len(numbers.shape) > 1

    def shapes(self, numbers: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        grid = tuple(math.ceil(n / size) for n, size in zip(numbers[-2:], self.block, strict=True))
        return numbers, numbers[:-2] + grid

    def plain(self, numbers: Tensor, scales: Tensor) -> Tensor:
        rows, columns = self.block
        out = torch.empty(numbers.shape, dtype=torch.float32)
        for each, given, factors in zip(*(matrices(t) for t in (out, numbers, scales)), strict=True):
            for i, row in enumerate(factors.float()):  # a row of blocks at a time: little memory beside the result
                here = slice(i * rows, (i + 1) * rows)
                each[here] = given[here].float() * row.repeat_interleave(columns)[: given.shape[1]]
        return out


class Mxfp4(Method):
    """Four-bit floats, two to a byte, with a power of two per 32 (OCP Microscaling Formats 1.0); gpt-oss stores outputs
    before inputs, its plain tensors have inputs first."""

    suffixes = ("_blocks", "_scales")

    def quantised(self, numbers: Stored) -> bool:
        return numbers.dtype == torch.uint8 and len(numbers.shape) > 2

    def shapes(self, numbers: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        *prefix, rows, groups, half = numbers
        return (*prefix, groups * half * 2, rows), (*prefix, rows, groups)

    def plain(self, numbers: Tensor, scales: Tensor) -> Tensor:
        table = torch.tensor(E2M1)
        out = torch.empty(*numbers.shape[:-2], numbers.shape[-2] * numbers.shape[-1] * 2, dtype=torch.bfloat16)
        for each, given, powers in zip(matrices(out), matrices(numbers, 3), matrices(scales), strict=True):
            pairs = torch.stack([given & 15, given >> 4], -1).flatten(-2)  # the low half comes first
            each.copy_((table[pairs.int()] * (powers.float() - 127).exp2().unsqueeze(-1)).flatten(-2))
        return out.transpose(-1, -2)  # exact: two bits and a power of two


def matrices(value: Tensor, axes: int = 2) -> Tensor:
    """[..., R, C] to [N, R, C], a view: its last axes, one after the other."""
    return value.reshape(-1, *value.shape[-axes:])


def method(fields: Fields, allowed: Collection[str]) -> Method | None:
    """How a config.json says that weights are stored; None for plainly.

    Raises SpecError naming a method that is not among those `allowed`, or a setting that is not honoured.
    """
    how = fields.child(KEY)
    if how is None:
        return None
    name = how.get("quant_method", str)
    if name not in allowed:
        raise fields.error(
            KEY,
            f"weights are stored quantised ({name}); of quantised ones only {' and '.join(allowed)} are read here. "
            "Convert the checkpoint to bfloat16 with its publisher's script, or take a bfloat16 release, and remove "
            "the key",
        )
    for harmless in ("modules_to_not_convert", "scale_fmt", "dequantize"):  # the tensors say the first two themselves
        how.raw(harmless)
    if name == "mxfp4":
        return Mxfp4()
    how.only("fmt", "e4m3")
    how.only("activation_scheme", "dynamic")
    block = how.get("weight_block_size", list)
    if len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise how.error("weight_block_size", f"got {block}, expected rows and columns such as [128, 128]")
    return BlockFp8((block[0], block[1]))


def unquantised(
    content: Mapping[str, Any], allowed: Collection[str], stored: Mapping[str, Stored], where: Path
) -> dict[str, Stored]:
    """The tensors of a checkpoint with these fields as plain ones, in the precision that config.json names."""
    found = method(Fields(content, str(where / "config.json")), allowed)
    if found is None:
        return dict(stored)
    named = getattr(torch, str(content.get("dtype") or content.get("torch_dtype")), None)
    return found.gather(stored, named if named in PLAIN else torch.bfloat16, where)


def without(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of the same model with plain weights."""
    return {name: value for name, value in content.items() if name != KEY}


def consumed(stored: Mapping[str, Stored]) -> int:
    """How many tensors of the files stand behind these."""
    return sum(len(s.parts) if isinstance(s, Quantised) else 1 for s in stored.values())
