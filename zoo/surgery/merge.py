"""Dense specialists to one MoE: average what they share, split their feed-forward networks into routed experts
(UniMoE-Audio, arXiv 2510.13344, stage 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoo.models.unified import ModelSpec, UnifiedSpec
from zoo.surgery.base import Described, State, SurgerySpec, take


@dataclass(frozen=True, kw_only=True)
class MergeSpec(SurgerySpec):
    """Dense specialists become the routed experts of one MoE model; see average_and_split. Outputs move without bound.

    stages  the dense specialists, in the order of their experts; in a curriculum, names of earlier stages
    owners  modality -> the specialist whose encoder and heads are taken; others keep the model's own
    scale   factor on the routed experts' last map
    """

    stages: tuple[str, ...]
    owners: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages: got none, expected at least one specialist")
        for modality, stage in self.owners.items():
            if stage not in self.stages:
                raise ValueError(f"owners.{modality}: {stage!r} is not among the merged stages {list(self.stages)}")

    def sources(self) -> tuple[str, ...]:
        return self.stages

    def owner(self, modality: str) -> str | None:
        return self.owners.get(modality)

    def check(self, spec: ModelSpec, sources: Mapping[str, ModelSpec]) -> None:
        for modality, stage in self.owners.items():
            for model in (spec, sources[stage]):
                if isinstance(model, UnifiedSpec) and modality not in model.modalities:
                    known = ", ".join(model.modalities)
                    raise ValueError(f"owners.{modality}: no such modality in a model of {known}")

    def apply(self, spec: ModelSpec, state: State, sources: Mapping[str, Described]) -> Described:
        specialists = [sources[name][1] for name in self.stages]
        owners = {modality: self.stages.index(stage) for modality, stage in self.owners.items()}
        return spec, average_and_split(state, specialists, owners, self.scale)


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
            merged[name] = value.clone() if owner is None else take(specialists[owner], name, value)
        elif ".ffn.experts." in name:
            merged[name] = _split(name, value, specialists, scale)
        elif ".ffn." in name:
            merged[name] = value.clone()
        else:
            merged[name] = torch.stack([take(s, name, value) for s in specialists]).mean(0)
    return merged


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
