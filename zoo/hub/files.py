"""Writing a model's folder: safetensors in one file or in shards, and what people and tokenizers read beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from modalities.text.module import Text
from modalities.text.tokenizer_files import copy_text_files
from zoo.hub import skeleton, tensors
from zoo.hub.card import CardFields
from zoo.hub.entries import EntryFile, describe
from zoo.models.origin import Origin
from zoo.spec import dump

STORED = {dtype: name for name, dtype in tensors.DTYPES.items()}  # how safetensors calls them
COMPILED = "_orig_mod"  # under which name torch.compile's wrapper holds a module


def bare(model: nn.Module) -> nn.Module:
    """The model itself, out of the wrapper of torch.compile, which gives every tensor another name.

    Raises TypeError where it is no model with a spec, or a part of it is compiled by itself.
    """
    inner = dict(model.named_children()).get(COMPILED, model)
    if not hasattr(inner, "spec"):
        raise TypeError(f"model: got a {type(inner).__name__}, expected one of zoo.create or zoo.load itself")
    for name, _ in inner.named_modules():
        part = name.removesuffix(f".{COMPILED}")
        if part != name:
            raise TypeError(
                f"model: {part} was replaced by torch.compile; expected .compile() of it, which keeps names"
            )
    return inner


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state. Raises TypeError where it holds more than tensors, ValueError where it has no weights."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: the model's state holds a {type(value).__name__}, expected tensors only")
        if value.is_meta:
            raise ValueError(f"{name}: the model has no weights (it was built on the meta device)")
    return {name: value.detach() for name, value in state.items()}


def write_tensors(
    folder: Path, forms: Mapping[str, Tensor], value: Callable[[str], Tensor], max_shard_size: int | None
) -> None:
    """Writes the tensors named in `forms` (shape and dtype count), asking for one value at a time.

    Raises ValueError for an impossible size, OSError where a file cannot be written.
    """
    groups = shards(forms, max_shard_size)
    if len(groups) == 1:
        _write_file(folder / tensors.SINGLE, {name: forms[name] for name in groups[0]}, value)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(groups, 1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        _write_file(folder / file, {name: forms[name] for name in shard}, value)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": skeleton.size(forms.values())}, "weight_map": weight_map}
    (folder / tensors.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, forms: Mapping[str, Tensor], value: Callable[[str], Tensor]) -> None:
    """A safetensors file, written tensor by tensor, in the order of the format's own library: wide types first, so that
    each begins at a multiple of its width."""
    names = sorted(forms, key=lambda name: (-forms[name].element_size(), name))
    try:
        with path.open("wb") as handle:
            handle.write(_header({name: forms[name] for name in names}))
            for name in names:
                handle.write(_bytes(name, value(name), forms[name]).numpy().data)
    except OSError as error:  # a full disk, for one
        raise OSError(f"{path.name}: could not be written, what was there before is unchanged: {error}") from error


def _header(forms: Mapping[str, Tensor]) -> bytes:
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, form in forms.items():
        begin, end = end, end + skeleton.size([form])
        content[name] = {"dtype": STORED[form.dtype], "shape": list(form.shape), "data_offsets": [begin, end]}
    raw = json.dumps(content, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _bytes(name: str, value: Tensor, form: Tensor) -> Tensor:
    """The tensor's bytes [n]. Raises ValueError where it is not as announced."""
    if value.shape != form.shape or value.dtype != form.dtype:
        raise ValueError(f"{name}: got {value.dtype} {list(value.shape)}, expected {form.dtype} {list(form.shape)}")
    return value.contiguous().reshape(-1).view(torch.uint8)


def shards(forms: Mapping[str, Tensor], limit: int | None) -> list[list[str]]:
    """The names in their order, cut where the next would exceed `limit` bytes; a tensor is never cut."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"max_shard_size: got {limit!r}, expected a number of bytes, 1 or more")
    found: list[list[str]] = [[]]
    used = 0
    for name, form in forms.items():
        held = skeleton.size([form])
        if limit is not None and found[-1] and used + held > limit:
            found.append([])
            used = 0
        found[-1].append(name)
        used += held
    return found


def write_beside(folder: Path, name: str, model: nn.Module, card: CardFields) -> None:
    """README.md, and the tokenizer and generation files of the folder that the model was loaded from."""
    readme = describe(name, EntryFile(spec=dump(model.spec), card=card), pretrained=True).markdown()
    (folder / "README.md").write_text(readme, encoding="utf-8")
    for module in model.modules():
        if isinstance(module, Text):
            module.write_files(folder)
    origin: Origin | None = getattr(model, "origin", None)
    if origin is not None and origin.folder is not None and origin.folder.is_dir():
        copy_text_files(origin.folder, folder)
