"""AdamW: which parameters it decays, and how its learning rate follows the width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from zoo.models.unified import Unified
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


def width_factor(dim: int, tuned: int | None) -> float:
    """1 / s: the width that a learning rate was tuned at over the model's; 1 where there is none."""
    if tuned is None:
        return 1.0
    if tuned < 1:
        raise ValueError(f"tuned_width: got {tuned}, expected 1 or more")
    return tuned / dim


def matrices(model: Unified) -> set[str]:
    """Names of the parameters whose learning rate and initial variance fall with the width (Adam, standard
    parametrisation; LongCat-Flash, arXiv 2509.01322): the trunk's of two dimensions and more, and the linear maps of
    its states in modalities. Embedding tables and maps of inputs keep theirs: what they sum over does not grow."""
    trunk = {f"backbone.{name}" for name, p in model.backbone.named_parameters() if p.ndim >= 2}
    heads = {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if prefix.startswith("modalities.")
        and isinstance(module, nn.Linear)
        and module.in_features == model.spec.backbone.dim
    }
    return trunk | heads


@torch.no_grad()
def initialise(model: Unified, std: float, factor: float, generator: torch.Generator) -> None:
    """Draws embedding tables from N(0, std^2) and `matrices` from N(0, std^2 * factor). What starts as a constant (maps
    that begin at zero) stays. Raises ValueError where std is negative."""
    if std < 0:
        raise ValueError(f"init_std: got {std}, expected 0 or more")
    slow, tables = matrices(model), {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        varies = bool((parameter != parameter.flatten()[:1]).any())
        if varies and (name in slow or id(parameter) in tables):
            drawn = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(drawn * factor**0.5 if name in slow else drawn)


def groups(model: Unified, weight_decay: float, embeddings: bool, width: float = 1.0) -> Iterator[dict[str, object]]:
    """The optimiser's parameter groups: those with decay, those without; frozen parameters are in neither. Where
    `width` is not 1, matrices are apart from the rest: `scale` is then the factor on their learning rate."""
    spared, slow = undecayed(model, embeddings), matrices(model) if width != 1 else set()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for spare, slower in ((False, False), (False, True), (True, False), (True, True)):
        chosen = [p for name, p in named if (name in spared) == spare and (name in slow) == slower]
        if chosen:
            decay, scale = 0.0 if spare else weight_decay, width if slower else 1.0
            yield {"params": chosen, "weight_decay": decay, "scale": scale}


def build(
    model: Unified,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    embeddings: bool,
    width: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW over what trains. Raises ValueError where nothing does."""
    parts = list(groups(model, weight_decay, embeddings, width))
    if not parts:
        raise ValueError("trainable: no parameter is left to train")
    return torch.optim.AdamW(parts, lr=lr, betas=betas, eps=eps, fused=True)
