"""Training checkpoints to saved models: Lightning's last.ckpt to a folder of safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from modalities.text.module import Text
from zoo.hub import skeleton, tensors
from zoo.hub.card import CardFields
from zoo.hub.folder import check_target
from zoo.hub.weights import save
from zoo.models.origin import Origin
from zoo.spec import SpecError, parse

if TYPE_CHECKING:
    from zoo.models.unified import Unified

ZIP = b"PK\x03\x04"
PREFIX = "model."  # where the LightningModule holds its model


def convert(
    checkpoint: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    card: CardFields | None = None,
) -> Path:
    """A checkpoint of our training to a saved model in `folder`. Raises as `read_checkpoint` does, and
    FileExistsError."""
    check_target(Path(folder).expanduser(), overwrite)
    return save(read_checkpoint(checkpoint), folder, overwrite=overwrite, card=card)


def read_checkpoint(checkpoint: str | os.PathLike[str]) -> Unified:
    """The model of a checkpoint of our training; every tensor of the model must be there and no other.

    Where weights were averaged in training, the checkpoint holds the average. It is opened as tensors and plain types
    only, so nothing in it can run. Raises FileNotFoundError, SpecError, or WeightsError saying what was found.
    """
    path = Path(checkpoint).expanduser()
    content = _open(path)
    spec = _spec(path, content)
    state = {name.removeprefix(PREFIX): value for name, value in content["state_dict"].items()}
    model = skeleton.build(spec.build)
    stored = {name: tensors.Stored(path, tuple(value.shape), value.dtype) for name, value in state.items()}
    tensors.check(stored, model.state_dict(), path)
    model.load_state_dict(state, assign=True)
    return _remembering(cast("Unified", model), content.get("origin"))


def _remembering(model: Unified, origin: Mapping[str, Any] | None) -> Unified:
    """The model, with what it remembers of the public checkpoint that training began from and with that one's tokenizer
    where its folder is still there."""
    if origin is not None:
        model.origin = Origin.of(origin)
        for modality in model.modalities.values():
            if isinstance(modality, Text) and model.origin.folder is not None:
                modality.attach(model.origin.folder)
    return model


def _open(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise FileNotFoundError(f"{path}: is a folder, expected a checkpoint file such as last.ckpt")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    with path.open("rb") as handle:
        if handle.read(4) != ZIP:
            raise tensors.WeightsError(f"{path}: not a checkpoint of torch.save ({path.stat().st_size} bytes)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or foreign file can provoke anything in the reader
        raise tensors.WeightsError(f"{path}: {_refusal(path, error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        held = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise tensors.WeightsError(f"{path}: no Lightning checkpoint (no 'state_dict'); it holds {held}")
    if not all(isinstance(value, Tensor) for value in content["state_dict"].values()):
        raise tensors.WeightsError(f"{path}: its state_dict holds more than tensors")
    return content


def _refusal(path: Path, error: Exception) -> str:
    """One line on why a checkpoint could not be opened."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if type(error).__name__ == "UnpicklingError" and "weights_only" in str(error).lower():
        found = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        return f"holds more than tensors and plain types{what}, which could run code, so it is not opened"
    return f"not a readable checkpoint ({path.stat().st_size} bytes): {reason}"


def _spec(path: Path, content: Mapping[str, Any]) -> Any:
    from zoo.models.unified import ModelSpec

    settings = content.get("hyper_parameters") or {}
    plain = settings.get("spec")
    if not isinstance(plain, Mapping):
        raise SpecError(
            f"{path}: its hyper-parameters hold no 'spec' mapping; it was not written by `python -m training`"
        )
    try:
        return parse(ModelSpec, plain)
    except SpecError as error:
        raise SpecError(f"{path}: hyper_parameters.spec: {error}") from error
