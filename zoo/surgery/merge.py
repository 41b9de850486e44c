"""Dense specialists to one MoE: average what they share, split their feed-forward networks into routed experts
(UniMoE-Audio, arXiv 2510.13344, stage 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def average_and_split(
    target: State, specialists: Sequence[State], owners: Mapping[str, int], scale: float = 1.0
) -> State:
    """The weights of an MoE model merged from dense models of the same trunk.

    target       the MoE model's own (random) weights: gates, shared and null experts are taken from here
    specialists  state dicts of models whose feed-forward layers are dense, of hidden size n * F for n *
                 len(specialists) routed experts of hidden size F; specialist s gives experts s * n ... (s + 1) * n - 1
    owners       modality name -> index of the specialist whose encoder and heads are taken; others keep the target's
    scale        factor on the routed experts' last map. With 1 the n slices of one specialist, each of weight 1, sum to
                 its dense network; routing weights sum to at most 1, so that n restores its size at even weights.

    Outputs move without bound in general; where all specialists are equal, attention and norms are kept exactly.
    Raises ValueError naming the tensors that do not fit.
    """
    merged = {}
    for name, value in target.items():
        if name.startswith("modalities."):
            owner = owners.get(name.split(".")[1])
            merged[name] = value.clone() if owner is None else _take(specialists[owner], name, value)
        elif ".ffn.experts." in name:
            merged[name] = _split(name, value, specialists, scale)
        elif ".ffn." in name:
            merged[name] = value.clone()
        else:
            merged[name] = torch.stack([_take(s, name, value) for s in specialists]).mean(0)
    return merged


def _take(state: State, name: str, like: Tensor) -> Tensor:
    if name not in state or (like.numel() and state[name].shape != like.shape):
        found = tuple(state[name].shape) if name in state else "nothing"
        raise ValueError(f"{name}: expected {tuple(like.shape)} in the specialist, found {found}")
    return state[name].clone()


def _split(name: str, like: Tensor, specialists: Sequence[State], scale: float) -> Tensor:
    """Routed experts [R, ...] from dense maps: rows of gate and up, columns of down."""
    routed = like.shape[0]
    if routed % len(specialists):
        raise ValueError(f"{name}: {routed} routed experts do not divide over {len(specialists)} specialists")
    slices = routed // len(specialists)
    dense = name.replace(".ffn.experts.", ".ffn.")
    experts = []
    for state in specialists:
        if dense not in state:
            raise ValueError(f"{dense}: missing in a specialist; its feed-forward layers must be dense SwiGLU")
        weight = state[dense]
        if name.endswith("gate_up"):
            gate, up = weight.chunk(2)
            experts += [torch.cat(pair) for pair in zip(gate.chunk(slices), up.chunk(slices), strict=True)]
        else:
            experts += [piece * scale for piece in weight.chunk(slices, dim=1)]
    merged = torch.stack([e.contiguous() for e in experts])
    if merged.shape != like.shape:
        raise ValueError(f"{name}: slices of {dense} give {tuple(merged.shape)}, expected {tuple(like.shape)}")
    return merged
