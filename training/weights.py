"""Weights a training run starts from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from modalities.text.files_tokenizer import FilesTokenizer
from modalities.text.module import Text
from zoo.hub import config, tensors
from zoo.hub.conversion import checkpoint, quantised, stream
from zoo.hub.conversion.language import MismatchError
from zoo.hub.conversion.same import differences
from zoo.hub.tensors import Stored
from zoo.models.origin import Origin
from zoo.models.unified import Unified
from zoo.spec import Plain

Source = tuple[Mapping[str, Stored], Callable[[Collection[str]], object]]  # what it holds by our names; takes these


def load_weights(model: Unified, path: str | Path, *, strict: bool) -> set[str]:
    """Loads the folder of a saved model or of a public checkpoint, or one safetensors file; returns the names loaded.

    Strict raises WeightsError listing every missing, surplus and misshapen tensor, and warns where a public checkpoint
    computes otherwise with equal tensors. Otherwise what fits by name, shape and dtype is taken and the rest is named
    in a warning. Tokenizer files of the folder serve a model whose tokenizer is read from such. A public checkpoint is
    read tensor by tensor into the model's own memory and precision.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"init_from: {path}: no such file or folder")
    content = config.content(path / "config.json") if (path / "config.json").is_file() else {}
    held, take = _public(model, path, content, strict) if config.is_foreign(content) else _own(model, path)
    expected = model.state_dict()
    if strict:
        tensors.check(held, expected, path)
    fitting = {n for n, s in held.items() if n in expected and s.shape == tuple(expected[n].shape)}
    left = sorted((expected.keys() | held.keys()) - fitting)
    if left:
        shown = ", ".join(left[:8]) + (" ..." if len(left) > 8 else "")
        warnings.warn(f"init_from: {path}: {len(left)} tensors are not taken over: {shown}", stacklevel=2)
    if not fitting:
        raise tensors.WeightsError(f"{path}: holds no tensor of this model")
    take(fitting)
    if path.is_dir():
        _attach(model, path, content)
    return fitting


def _own(model: Unified, path: Path) -> Source:
    stored = tensors.contents(path) if path.is_dir() else tensors.header(path)
    return stored, lambda names: model.load_state_dict(tensors.read({n: stored[n] for n in names}), strict=False)


def _public(model: Unified, folder: Path, content: Plain, strict: bool) -> Source:
    found = checkpoint.plan(folder, content)
    held = {name: Stored(folder, tuple(v.shape), v.dtype) for name, v in found.model.state_dict().items()}

    def take(names: Collection[str]) -> None:
        if strict:
            _warn_of_other_numbers(model, found, folder)
        pieces = [piece for piece in found.pieces if piece.ours in names]
        theirs = {piece.theirs for piece in pieces}
        stream.fill(model.state_dict(), pieces, {n: s for n, s in found.read.items() if n in theirs})

    return held, take


def _warn_of_other_numbers(model: Unified, found: checkpoint.Plan, folder: Path) -> None:
    try:
        unlike = differences(checkpoint.full(model.spec), checkpoint.full(found.spec))
    except MismatchError:  # a model with further modalities: the tensors decide
        return
    if unlike:
        listed = "; ".join(unlike[:8])
        warnings.warn(f"init_from: {folder}: the model differs from its config.json in {listed}", stacklevel=4)


def _attach(model: Unified, folder: Path, content: Plain) -> None:
    """Tokenizer files, and what an export as the public checkpoint's family should keep."""
    texts = [m for m in model.modalities.values() if isinstance(m, Text) and isinstance(m.tokenizer, FilesTokenizer)]
    for text in texts:
        text.attach(folder)
    if texts and config.is_foreign(content):
        model.origin = Origin(content["model_type"], quantised.without(content), folder)
    elif texts and isinstance(content.get("source"), Mapping):
        model.origin = Origin(content["source"].get("family"), content["source"].get("fields", {}), folder)
