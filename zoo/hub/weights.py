"""Models to folders and back: config.json, safetensors, a README card; nothing in them can run code."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.hub import config, skeleton, tensors
from zoo.hub.card import CardFields
from zoo.hub.entries import EntryError, EntryFile, describe, find_entry, has_entry, is_path
from zoo.hub.folder import check_target, replacing
from zoo.spec import SpecError, dump, parse

if TYPE_CHECKING:
    from zoo.models.unified import Unified

SPARE = 1 << 24  # parameters a description may promise beyond the files before the shapes are compared one by one


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    max_shard_size: int | None = None,
    card: CardFields | None = None,
) -> Path:
    """Writes a model's folder: config.json (its spec), model.safetensors (or shards and an index), README.md.

    Written beside and renamed, so a kill or a full disk leaves what stood there before. max_shard_size is the size in
    bytes above which a further file is begun; card is what a person knows of the model.
    Raises FileExistsError where the folder holds something and `overwrite` is off, or holds anything but a saved model.
    """
    folder, fields = Path(folder).expanduser(), card or CardFields()
    check_target(folder, overwrite)
    plain, written = dump(model.spec), dump(fields)
    state = _state(model)
    readme = describe(folder.absolute().name, EntryFile(spec=plain, card=fields), pretrained=True).markdown()
    with replacing(folder) as beside:
        config.write(beside / "config.json", plain, written)
        _write_tensors(beside, state, max_shard_size)
        (beside / "README.md").write_text(readme, encoding="utf-8")
    return folder


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: the model's state holds a {type(value).__name__}, expected tensors only")
        if value.is_meta:
            raise ValueError(f"{name}: the model has no weights (it was built on the meta device)")
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _write_tensors(folder: Path, state: Mapping[str, Tensor], max_shard_size: int | None) -> None:
    shards = _shards(state, max_shard_size)
    if len(shards) == 1:
        _write_file(folder / tensors.SINGLE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": skeleton.size(state.values())}, "weight_map": weight_map}
    (folder / tensors.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, state: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(state), path, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{path.name}: could not be written, what was there before is unchanged: {error}") from error


def _shards(state: Mapping[str, Tensor], limit: int | None) -> list[dict[str, Tensor]]:
    """The tensors in their order, cut where the next would exceed `limit` bytes; a tensor is never cut."""
    if limit is not None and limit < 1:
        raise ValueError(f"max_shard_size: got {limit}, expected a number of bytes, 1 or more")
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, value in state.items():
        held = skeleton.size([value])
        if limit is not None and shards[-1] and used + held > limit:
            shards.append({})
            used = 0
        shards[-1][name] = value
        used += held
    return shards


def load(
    ref: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> Unified:
    """A model with its weights, in evaluation mode: an entry that has weights, a folder, or `hf:org/name@revision`.

    dtype is that of the file where None; parts that need float32 (routers, codecs) keep it. Names, shapes and dtypes
    are checked against the spec before anything is allocated.
    Raises EntryError, FileNotFoundError, SpecError, or WeightsError that lists every tensor that does not fit.
    """
    return cast(read_model(locate(ref)), dtype).to(device=device).eval()


def cast(model: Unified, dtype: torch.dtype | None) -> Unified:
    """The model in another precision; what must stay precise does (see modalities.precise)."""
    if dtype is None:
        return model
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: got {dtype}, expected a floating-point type")
    return model.to(dtype=dtype)


def read_model(folder: Path) -> Unified:
    """The model of a saved folder, on the CPU."""
    from zoo.models.unified import ModelSpec

    try:
        spec = parse(ModelSpec, config.read(folder / "config.json")["spec"])
    except SpecError as error:
        prefix = "" if str(error).startswith(str(folder)) else f"{folder / 'config.json'}: "
        raise SpecError(prefix + str(error)) from error
    stored = tensors.contents(folder)
    held, promised = sum(math.prod(s.shape) for s in stored.values()), spec.cost().total
    if promised > 2 * held + SPARE:
        raise tensors.WeightsError(f"{folder}: config.json describes {promised} parameters, the files hold {held}")
    model = skeleton.build(spec.build)
    tensors.check(stored, model.state_dict(), folder)
    model.load_state_dict(tensors.read(stored), assign=True)
    return model  # type: ignore[return-value]


def locate(ref: str | os.PathLike[str]) -> Path:
    """The folder behind a reference, fetched from the hub where it says so."""
    if isinstance(ref, str) and ref.startswith("hf:"):
        return _from_hub(ref)
    path = Path(ref).expanduser()
    if not is_path(ref) and has_entry(os.fspath(ref)):
        entry = find_entry(os.fspath(ref))
        if entry.weights is None:
            raise EntryError(f"entry {entry.name!r} has no weights; zoo.create({entry.name!r}) draws random ones")
        return locate(entry.weights) if entry.weights.startswith("hf:") else Path(entry.weights)
    if path.is_dir():
        return path
    if path.is_file():
        raise FileNotFoundError(
            f"{path}: is a file; expected a saved model's folder, which `zoo convert` makes of a .ckpt"
        )
    if is_path(ref):
        text = os.fspath(ref)
        hub = f"; for the Hugging Face hub write 'hf:{text}'" if text.count("/") == 1 and text[0] not in "./~" else ""
        raise FileNotFoundError(f"{path}: no such folder{hub}")
    find_entry(os.fspath(ref))
    raise AssertionError("an entry that was not found is an error")


def _from_hub(ref: str) -> Path:
    """Fetches config and safetensors files, nothing else, through the hub's cache; HF_HUB_OFFLINE is honoured."""
    name, _, revision = ref.removeprefix("hf:").partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise EntryError(f"{ref!r}: expected hf:organisation/name or hf:organisation/name@revision")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "*.safetensors", tensors.INDEX]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{ref}: not in the local cache and not to be had from the hub: {reason}") from error
