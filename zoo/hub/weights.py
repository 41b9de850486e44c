"""Models to folders and back: config.json, safetensors, a README card; nothing in them can run code."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modalities.text.module import Text
from modalities.text.tokenizer_files import TEXT_FILES
from zoo.hub import config, files, memory, skeleton, tensors
from zoo.hub.card import CardFields
from zoo.hub.conversion import checkpoint
from zoo.hub.entries import EntryError, find_entry, has_entry, is_path
from zoo.hub.folder import check_target, replacing
from zoo.models.origin import Origin
from zoo.spec import Plain, SpecError, dump, parse

if TYPE_CHECKING:
    from zoo.models.unified import Unified


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    max_shard_size: int | None = None,
    card: CardFields | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a model's folder: config.json (its spec), model.safetensors (or shards and an index), README.md, and the
    tokenizer and generation files of the folder it was loaded from.

    Written beside and renamed, so a kill or a full disk leaves what stood there before. max_shard_size is the size in
    bytes above which a further file is begun; card is what a person knows of the model; values are the weights of a
    model without memory, asked for one by one.
    Raises FileExistsError where the folder holds something and `overwrite` is off, or holds anything but a saved model.
    """
    folder, fields = Path(folder).expanduser(), card or CardFields()
    check_target(folder, overwrite)
    model = files.bare(model)
    plain, written = dump(model.spec), dump(fields)
    state = files.state_of(model) if values is None else values
    with replacing(folder) as beside:
        config.write(beside / "config.json", plain, written, getattr(model, "origin", None))
        files.write_tensors(beside, model.state_dict(), lambda name: state[name].cpu().contiguous(), max_shard_size)
        files.write_beside(beside, folder.absolute().name, model, fields)
    return folder


def load(
    ref: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    pack: bool = False,
    ignore_remote_code: bool = False,
) -> Unified:
    """A model with its weights, in evaluation mode: an entry that has weights, a folder that zoo.save wrote or that
    holds a public checkpoint of a supported family, or `hf:org/name@revision`.

    dtype is that of the file where None; parts that need float32 (routers, codecs) keep it. pack stores the weights in
    the order that inference on a CPU reads fastest (zoo.hub.memory.pack). Names, shapes and dtypes are checked against
    the spec before anything is allocated; on the device "meta" nothing is, and no number is read.
    A public checkpoint whose config.json names code to run is refused; with ignore_remote_code it is read by our own
    table of its family, and that code is not run either. Raises EntryError, FileNotFoundError, SpecError, or
    WeightsError that lists every tensor that does not fit.
    """
    tensors.check_dtype(dtype)
    if pack:
        memory.check_device(device)
    folder = locate(ref)
    content = config.content(folder / "config.json", ignore_remote_code=ignore_remote_code)
    if config.is_foreign(content):
        model = checkpoint.load(folder, content, dtype, device, pack=pack)
    else:
        model = cast(read_model(folder), dtype)
        if pack:
            memory.pack(model)
    return ready(model.to(device=device), folder)


def ready(model: Unified, folder: Path) -> Unified:
    """A model whose weights are read, with the tokenizer files of its folder, in evaluation mode."""
    for modality in model.modalities.values():
        if isinstance(modality, Text):
            modality.attach(folder)
    return model.eval()


def cast(model: Unified, dtype: torch.dtype | None) -> Unified:
    """The model in another precision; what must stay precise does (see modalities.precise)."""
    tensors.check_dtype(dtype)
    return model if dtype is None else model.to(dtype=dtype)


def read_model(folder: Path) -> Unified:
    """The model of a folder that zoo.save wrote, on the CPU. Its tensors are the mapped files until they change."""
    content = config.read(folder / "config.json")
    model, stored = fitted(folder, content)
    model.load_state_dict(tensors.read(stored), assign=True)
    return model


def fitted(folder: Path, content: Plain) -> tuple[Unified, dict[str, tensors.Stored]]:
    """The model of a config.json of ours, its parameters without memory, and the tensors of the folder, which fit it.
    Its origin is what config.json says, read from this folder.

    Raises SpecError, FileNotFoundError, or WeightsError that lists every tensor that does not fit.
    """
    from zoo.models.unified import ModelSpec

    try:
        spec = parse(ModelSpec, content["spec"])
    except SpecError as error:
        prefix = "" if str(error).startswith(str(folder)) else f"{folder / 'config.json'}: "
        raise SpecError(prefix + str(error)) from error
    stored = tensors.contents(folder)
    checkpoint.check_size(spec.cost().total, stored, folder)
    model = typing.cast("Unified", skeleton.build(spec.build))
    tensors.check(stored, model.state_dict(), folder)
    source = content.get("source")
    model.origin = Origin(source["family"], source["fields"], folder) if source else Origin(folder=folder)
    return model, stored


def prefetch(ref: str | os.PathLike[str]) -> Path:
    """Fetches what zoo.load would read into the cache of the hub; returns the folder. Headers are checked, no weight is
    read. What is on this machine already is not fetched again. Raises as zoo.load does."""
    folder = locate(ref)
    tensors.contents(folder)
    return folder


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
    """Fetches config, safetensors and tokenizer files, nothing else, through the hub's cache; HF_HUB_OFFLINE is
    honoured."""
    name, _, revision = ref.removeprefix("hf:").partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise EntryError(f"{ref!r}: expected hf:organisation/name or hf:organisation/name@revision")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "model*.safetensors", tensors.INDEX, *TEXT_FILES]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{ref}: not in the local cache and not to be had from the hub: {reason}") from error
