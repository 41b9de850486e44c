"""Safetensors files: what is in them, checked against what a model expects before anything is allocated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
PART = 1 << 24  # numbers that are looked at together
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
FOREIGN = {
    b"PK\x03\x04": "a zip archive, as torch.save writes; it may hold pickled code and is never opened here. "
    "`zoo convert last.ckpt DIR` converts a checkpoint of our own training",
    b"\x80\x02": "a pickle, which can run code and is never opened",
    b"\x80\x04": "a pickle, which can run code and is never opened",
    b"\x80\x05": "a pickle, which can run code and is never opened",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` in that folder",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page or XML, perhaps a failed download",
}


class WeightsError(ValueError):
    """A weight file that cannot be used; the message names the file and every tensor that does not fit."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape and dtype, and the file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def value(self, name: str, opened: Any) -> Tensor:
        """The tensor of this name in its file, which is open: a view."""
        return cast(Tensor, opened.get_tensor(name))


def header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name; nothing but its header is read.

    Raises FileNotFoundError, or WeightsError where the file is truncated, empty or not safetensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file")
    length = path.stat().st_size
    with path.open("rb") as handle:
        first = handle.read(32)
        if first[8:9] != b"{":  # every safetensors file has one there, whatever its first bytes say
            raise WeightsError(f"{path}: {_foreign(first, length)}; expected a safetensors file")
        announced = int.from_bytes(first[:8], "little")
        if announced > min(LONGEST_HEADER, length - 8):
            raise WeightsError(
                f"{path}: announces a header of {announced} bytes, but the file has {length}: truncated or forged"
            )
        handle.seek(8)
        raw = handle.read(announced)
    try:
        content = json.loads(raw)
        tensors = {name: entry for name, entry in content.items() if name != "__metadata__"}
        found = {name: _stored(path, name, entry) for name, entry in tensors.items()}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: its header is corrupt ({type(error).__name__}: {error})") from error
    if length != 8 + announced + end:
        state = "truncated" if length < 8 + announced + end else "longer than its header says"
        raise WeightsError(f"{path}: {state}: {length} bytes, expected {8 + announced + end}; fetch or save it again")
    return found


def _foreign(first: bytes, length: int) -> str:
    """What a file that is no safetensors file seems to be."""
    known = next((what for magic, what in FOREIGN.items() if first.startswith(magic)), None)
    return known or f"not a safetensors file ({length} bytes)"


def _stored(path: Path, name: str, entry: Mapping[str, Any]) -> Stored:
    dtype, shape = DTYPES.get(str(entry["dtype"])), entry["shape"]
    if dtype is None:
        raise WeightsError(f"{path}: tensor {name!r} has dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise WeightsError(f"{path}: tensor {name!r} has the shape {shape!r}")
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise WeightsError(f"{path}: tensor {name!r} {shape} takes {end - begin} bytes; the header is corrupt")
    return Stored(path, tuple(shape), dtype)


def contents(folder: Path) -> dict[str, Stored]:
    """The tensors of a model's folder: of model.safetensors, or of the shards its index names."""
    if (folder / SINGLE).is_file():
        return header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        held = sorted(p.name for p in folder.iterdir())[:8]
        pickled = [name for name in sorted(p.name for p in folder.iterdir()) if name.endswith(PICKLED)]
        if pickled:
            raise WeightsError(
                f"{folder}: has its weights as {pickled[0]} only, a pickle, which can run code and is never opened "
                "here. Convert it once where you trust it: transformers.AutoModelForCausalLM.from_pretrained(FOLDER)"
                ".save_pretrained(NEW_FOLDER) writes safetensors"
            )
        raise FileNotFoundError(f"{folder}: no {SINGLE}; it holds {', '.join(held) or 'nothing'}")
    weight_map = _weight_map(folder / INDEX)
    found: dict[str, Stored] = {}
    files = sorted(set(weight_map.values()))
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{folder / absent[0]}: no such weight file, but {INDEX} names it ({len(absent)} of {len(files)} are "
            "missing); fetch or save it again"
        )
    for file in files:
        found |= header(folder / file)
    actual = {name: stored.file.name for name, stored in found.items()}
    wrong = sorted(n for n in actual.keys() | weight_map.keys() if actual.get(n) != weight_map.get(n))
    if wrong:
        raise WeightsError(
            f"{folder / INDEX}: does not agree with its shards about {', '.join(wrong[:8])}; fetch all files again"
        )
    return found


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        entries = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: not an index of shards ({type(error).__name__}: {error})") from error
    for file in entries.values():
        if file != Path(file).name or "\\" in file or not file.endswith(".safetensors"):
            raise WeightsError(f"{path}: names the shard {file!r}; expected a .safetensors file in the same folder")
    return entries


def check(stored: Mapping[str, Stored], expected: Mapping[str, Tensor], where: Path) -> None:
    """Raises WeightsError listing all missing, surplus and misshapen tensors. Floats may have another precision,
    but for those of eight bits, which mean nothing without their scales."""
    problems = [f"missing {n} {_form(t.shape, t.dtype)}" for n, t in expected.items() if n not in stored]
    problems += [f"surplus {n} {_form(s.shape, s.dtype)}" for n, s in stored.items() if n not in expected]
    for name in expected.keys() & stored.keys():
        have, want = stored[name], expected[name]
        floats = have.dtype.is_floating_point and want.dtype.is_floating_point and have.dtype.itemsize > 1
        if have.shape != tuple(want.shape) or not (floats or have.dtype == want.dtype):
            form = _form(want.shape, want.dtype)
            problems.append(f"misshapen {name}: {_form(have.shape, have.dtype)}, expected {form}")
    if problems:
        listed = "\n  ".join(sorted(problems))
        what = f"{len(problems)} tensors do not fit the model of config.json (are both of one release?)"
        raise WeightsError(f"{where}: {what}:\n  {listed}")


def _form(shape: Sequence[int], dtype: torch.dtype) -> str:
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises ValueError where a precision for weights is none: a name such as "bfloat16", or a type of integers."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype: got {dtype!r}, expected a floating-point type such as torch.bfloat16")


def read(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors themselves, on the CPU, as views of the mapped files."""
    return dict(each(stored))


def each(stored: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) file by file, each a view of the mapped file: what is let go of takes no memory."""
    from safetensors import SafetensorError, safe_open

    for file in sorted({s.file for s in stored.values()}):
        try:
            with safe_open(str(file), framework="pt") as opened:
                for name in (name for name, s in stored.items() if s.file == file):
                    yield name, stored[name].value(name, opened)
        except SafetensorError as error:
            raise WeightsError(f"{file}: cannot be read: {error}") from error


def nonfinite(stored: Mapping[str, Stored], seen: Callable[[int], object] | None = None) -> dict[str, int]:
    """Names of the tensors that hold NaN or infinity, with how many such numbers each; read one after the other.

    `seen` is told the bytes of every tensor once it is read.
    """
    found = {}
    for name, value in each(stored):
        if value.is_floating_point():
            parts = value.view(-1).split(PART) if value.is_contiguous() else value  # else along its first axis
            count = sum(_not_finite(part) for part in parts)
            if count:
                found[name] = count
        if seen is not None:
            seen(value.numel() * stored[name].dtype.itemsize)
    return found


def _not_finite(part: Tensor) -> int:
    """How many numbers are NaN or infinite; where there are none, nothing is allocated."""
    if not part.numel():
        return 0
    low, high = torch.aminmax(part)  # NaN spreads
    return 0 if bool(low.isfinite() & high.isfinite()) else part.numel() - int(part.isfinite().sum())
