"""Weights a training run starts from."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import nn

from zoo.hub import tensors


def load_weights(model: nn.Module, path: str | Path, *, strict: bool) -> set[str]:
    """Loads a folder with model.safetensors (or shards), or one safetensors file; returns the names loaded.

    Strict raises WeightsError listing every missing, surplus and misshapen tensor. Otherwise what fits by name, shape
    and dtype is taken and the rest is named in a warning.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"init_from: {path}: no such file or folder")
    stored = tensors.contents(path) if path.is_dir() else tensors.header(path)
    expected = model.state_dict()
    if strict:
        tensors.check(stored, expected, path)
    fitting = {n: s for n, s in stored.items() if n in expected and s.shape == tuple(expected[n].shape)}
    left = sorted((expected.keys() | stored.keys()) - fitting.keys())
    if left:
        shown = ", ".join(left[:8]) + (" ..." if len(left) > 8 else "")
        warnings.warn(f"init_from: {path}: {len(left)} tensors are not taken over: {shown}", stacklevel=2)
    if not fitting:
        raise tensors.WeightsError(f"{path}: holds no tensor of this model")
    model.load_state_dict(tensors.read(fitting), strict=False)
    return set(fitting)
