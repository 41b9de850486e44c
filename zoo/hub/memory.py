"""The order in which weights lie in memory: outputs first, or packed, in the order that inference on a CPU prefers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAPS = ("gate_up", "up", "down")  # weights [..., O, I] of feed-forward layers, applied as x W^T


def room(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str | None = None, *, packed: bool = False
) -> Tensor:
    """An empty tensor; packed stores the last two axes the other way round: the same shape, strides (..., 1, O)."""
    if packed:
        *rest, outputs, inputs = shape
        return room((*rest, inputs, outputs), dtype, device).mT
    return torch.empty(shape, dtype=dtype, device=device or "cpu")


def put(source: Tensor, target: Tensor) -> None:
    """Copies into a tensor of the same shape, which may be packed: then in blocks that stay in cache."""
    if target.dim() < 2 or target.stride(-1) == 1 or target.stride(-2) != 1:
        target.copy_(source)
        return
    for here, there in zip(source.reshape(-1, *source.shape[-2:]), _matrices(target), strict=True):
        there.mT.copy_(here.mT.contiguous())  # the first of the two copies is torch's blocked transposition


def _matrices(x: Tensor) -> list[Tensor]:
    return [x] if x.dim() == 2 else [matrix for part in x for matrix in _matrices(part)]


def packable(model: nn.Module) -> frozenset[str]:
    """Names of the weights that are worth packing: those of linear maps, dense networks and experts."""
    found = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 and name in (("weight",) if isinstance(module, nn.Linear) else MAPS):
                found.add(f"{prefix}.{name}")
    return frozenset(found)


def pack(model: nn.Module) -> None:
    """Stores the weights of a model's maps inputs first, in place, one after the other: shapes, names and files stay as
    they are, strides do not.

    For inference on a CPU: a product with one row, or with dozens, reads such weights 1.1 to 1.3 times as fast, one
    with two to eight rows more slowly, so it pays for prompts and single sequences, not for small batches (figures in
    benchmarks/README.md). Code that flattens parameters (`view(-1)`) or shards them (FSDP) wants them unpacked. Raises
    ValueError for a model elsewhere.
    """
    names = packable(model)
    for name, parameter in model.named_parameters():
        if name in names:
            check_device(parameter.device)
            fresh = room(parameter.shape, parameter.dtype, packed=True)
            put(parameter.detach(), fresh)
            parameter.data = fresh


def check_device(device: torch.device | str | None) -> None:
    """Raises ValueError where packed weights would lie anywhere but in a CPU's memory."""
    if torch.device(device or "cpu").type != "cpu":
        raise ValueError(f"pack: got weights on {device}, expected a model on the CPU")
