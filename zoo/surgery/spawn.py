"""One dense network per layer becomes N experts that begin as unlike copies of it (the expert-diversify phase of
EvoMoE, arXiv 2112.14397; re-drawn channels as in Drop-Upcycling, arXiv 2502.19261)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.models.unified import ModelSpec
from zoo.surgery.base import Described, State, SurgerySpec, take

EXPERTS = ".ffn.experts."


@dataclass(frozen=True, kw_only=True)
class SpawnSpec(SurgerySpec):
    """Every routed expert starts as the dense network that stands in its layer in an earlier model, made different;
    gates, shared and null experts stay as they are drawn, all else is copied.

    Outputs move without bound. With share 0 they are the dense model's wherever the weights of a token's experts sum to
    1, but equal copies under an even gate never part. Biases are not touched. The paper's abstract says that diverse
    experts are spawned, not how: mode and share are ours.

    stage      the dense model; in a curriculum, the name of an earlier stage
    mode       mask_once (a share of the entries is zero at the start, each expert's own), mask_kept (and stays zero
               while the stage trains), noise (of `share` times the weights' deviation) or reinit (a share of the hidden
               channels is drawn anew with the mean and deviation of what stood there)
    share      how much, 0 <= share < 1
    rescale    masked weights are divided by 1 - share
    optimiser  begins anew (reset) or goes on with its moments of the dense model (carried): copies have those of what
               they copy, entries that became zero or were drawn anew have none
    seed       of what is drawn
    """

    stage: str
    mode: Literal["mask_once", "mask_kept", "noise", "reinit"] = "mask_once"
    share: float = 0.3
    rescale: bool = False
    optimiser: Literal["reset", "carried"] = "reset"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share: got {self.share}, expected 0 <= share < 1")
        if self.rescale and not self.mode.startswith("mask"):
            raise ValueError(f"rescale: only masks take something away; expected false with mode: {self.mode}")

    def sources(self) -> tuple[str, ...]:
        return (self.stage,)

    def owner(self, modality: str) -> str | None:
        return self.stage

    def keeps_zeros(self, name: str) -> bool:
        return self.mode == "mask_kept" and self.share > 0 and EXPERTS in name and not name.endswith("bias")

    def check(self, spec: ModelSpec, sources: Mapping[str, ModelSpec]) -> None:
        with torch.device("meta"):
            ours, dense = spec.build().state_dict(), sources[self.stage].build().state_dict()
        if not any(EXPERTS in name for name in ours):
            raise ValueError("stage: the model to be filled has no routed experts")
        for name, value in ours.items():
            if EXPERTS in name:
                _source(dense, name, value, self.stage)

    def apply(self, spec: ModelSpec, state: State, sources: Mapping[str, Described]) -> Described:
        _, weights = sources[self.stage]
        result = {}
        for name, value in state.items():
            if EXPERTS in name:
                dense = _source(weights, name, value, self.stage)
                result[name] = torch.stack(list(self._copies(name, dense, len(value))))
            elif name not in weights and ".ffn." in name:
                result[name] = value.clone()
            else:
                result[name] = take(weights, name, value)
        return spec, result

    def remembered(self) -> tuple[str, ...]:
        return (self.stage,) if self.optimiser == "carried" else ()

    def moments(self, result: State, sources: Mapping[str, State], found: Mapping[str, State]) -> State:
        dense, old, carried = sources[self.stage], found[self.stage], {}
        for name, value in result.items():
            source = name.replace(EXPERTS, ".ffn.")
            if source in old:
                moment = old[source]
                spread = EXPERTS in name and moment.ndim > 0
                carried[name] = moment * self._kept(value, dense[source]) if spread else moment.clone()
        return carried

    def _kept(self, experts: Tensor, dense: Tensor) -> Tensor:
        """Which entries [R, ...] go back to what the dense tensor had there; a zero there was not taken away."""
        if self.mode == "noise":
            return torch.ones_like(experts)
        return ((experts != 0) | (dense == 0) if self.rescale else experts == dense).to(experts)

    def _copies(self, name: str, dense: Tensor, count: int) -> Iterator[Tensor]:
        """The experts of one tensor; what is drawn follows from the seed, the layer and, but for channels, the map."""
        layer, _, key = name.rpartition(".")
        for expert in range(count):
            place = layer if self.mode == "reinit" else name
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {place} {expert}".encode()))
            plain = key.endswith("bias") or not self.share
            yield dense.clone() if plain else self._changed(dense, key, generator).to(dense)

    def _changed(self, dense: Tensor, key: str, generator: torch.Generator) -> Tensor:
        weight = dense.double().cpu()
        if self.mode == "noise":
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            return weight + self.share * weight.std() * noise
        if self.mode == "reinit":
            return self._redrawn(weight, key, generator)
        keep = torch.rand(weight.shape, generator=generator, dtype=torch.float64) >= self.share
        return weight * keep / (1 - self.share if self.rescale else 1)

    def _redrawn(self, weight: Tensor, key: str, generator: torch.Generator) -> Tensor:
        """gate_up [2F, D], by rows, or down [D, F], by columns: the same channels of both."""
        hidden = weight.shape[0] // 2 if key == "gate_up" else weight.shape[1]
        channels = torch.randperm(hidden, generator=generator)[: round(self.share * hidden)]
        parts = [weight[:hidden], weight[hidden:]] if key == "gate_up" else [weight.T]
        drawn = []
        for part in parts:
            old = part[channels]
            noise = torch.randn(old.shape, generator=generator, dtype=torch.float64)
            drawn.append(part.index_copy(0, channels, old.mean() + old.std() * noise) if old.numel() > 1 else part)
        return torch.cat(drawn) if key == "gate_up" else drawn[0].T


def _source(dense: Mapping[str, Tensor], name: str, experts: Tensor, stage: str) -> Tensor:
    """The dense tensor behind stacked experts [R, ...]. Raises ValueError naming both where there is none of that
    shape."""
    found = dense.get(name.replace(EXPERTS, ".ffn."))
    if found is None or found.shape != experts.shape[1:]:
        shape = "nothing" if found is None else str(tuple(found.shape))
        raise ValueError(
            f"stage: {name} needs a dense network of {tuple(experts.shape[1:])} in {stage!r}, found {shape}; expected "
            "ffn: {type: dense} there, as wide as one expert"
        )
    return found
