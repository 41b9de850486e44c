"""AdamW, and which parameters it decays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from zoo.moe.experts.null import NullExperts
from zoo.moe.experts.shared import SharedExperts
from zoo.moe.routers.base import Router

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def undecayed(model: nn.Module, embeddings: bool) -> set[str]:
    """Names of the parameters that weight decay leaves alone: vectors (norms, biases, tokens of their own), all of
    routers, norms and null experts, gates of shared experts and, unless `embeddings`, embedding tables."""
    names = set()
    for prefix, module in model.named_modules():
        whole = isinstance(module, (*NORMS, Router, NullExperts)) or (
            isinstance(module, nn.Embedding) and not embeddings
        )
        for name, parameter in module.named_parameters(prefix, recurse=whole):
            own = name.rpartition(".")[2]
            gate = isinstance(module, SharedExperts) and own == "gate"
            if whole or gate or parameter.ndim < 2 or own.startswith("bias") or own.endswith("bias"):
                names.add(name)
    return names


def freeze(model: nn.Module, trainable: Sequence[str]) -> list[str]:
    """Freezes every parameter whose name matches none of the regular expressions; returns the names that train.

    Raises ValueError naming an expression that matches nothing.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for pattern in trainable:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"trainable: {pattern!r} matches no parameter; names look like {', '.join(names[:3])} ...")
    kept = [name for name in names if any(re.search(pattern, name) for pattern in trainable)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    return kept


def groups(model: nn.Module, weight_decay: float, embeddings: bool) -> Iterator[dict[str, object]]:
    """The optimiser's parameter groups: those with decay, those without; frozen parameters are in neither."""
    spared = undecayed(model, embeddings)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for decay, chosen in (
        (weight_decay, [p for name, p in named if name not in spared]),
        (0.0, [p for name, p in named if name in spared]),
    ):
        if chosen:
            yield {"params": chosen, "weight_decay": decay}


def build(
    model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, embeddings: bool
) -> torch.optim.Optimizer:
    """AdamW over what trains. Raises ValueError where nothing does."""
    parts = list(groups(model, weight_decay, embeddings))
    if not parts:
        raise ValueError("trainable: no parameter is left to train")
    return torch.optim.AdamW(parts, lr=lr, betas=betas, eps=eps, fused=True)
