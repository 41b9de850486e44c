"""Driving modalities: their tokens through the trunk, at once or step by step."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modalities.base import Modality, Step, Tokens
from zoo.backbone.cache import Cache
from zoo.backbone.trunk import Backbone, BackboneOutput
from zoo.models.stepping import Restarting

if TYPE_CHECKING:
    from zoo.models.unified import UnifiedSpec


class Driving(nn.Module):
    """Modalities around a trunk."""

    spec: UnifiedSpec
    backbone: Backbone
    modalities: nn.ModuleDict

    def modality(self, name: str) -> Modality:
        """A modality by name. Raises KeyError naming those there are."""
        if name not in self.modalities:
            raise KeyError(f"this model has no modality {name!r}; it has {', '.join(self.modalities)}")
        return self.modalities[name]  # type: ignore[return-value]

    def run(
        self,
        tokens: Tokens,
        name: str,
        cache: Cache | None = None,
        *,
        step: Tensor | None = None,
        seed: int | None = None,
        output_hidden: bool = False,
    ) -> BackboneOutput:
        """The trunk over one modality's tokens."""
        if tokens.modality is None:
            index = list(self.modalities).index(name)
            filled = torch.full(tokens.shape, index, dtype=torch.int64, device=tokens.embedding.device)
            tokens = tokens.replace(modality=filled)
        if not self.spec.backbone.cond:
            tokens = tokens.replace(cond=None)
        return self.backbone(tokens, cache, step=step, seed=seed, output_hidden=output_hidden)

    def stepper(self, name: str) -> Step:
        """A fresh `step: Tokens -> Tokens` for sampling: with its own key/value cache where the modality feeds only
        new tokens."""
        if not self.modality(name).incremental:
            return lambda tokens: self.run(tokens, name).tokens

        def step(tokens: Tokens, cache: Cache) -> Tokens:
            return self.run(tokens, name, cache).tokens

        scaling, new_cache = self.spec.backbone.rope.scaling, self.backbone.new_cache
        if scaling is not None and scaling.jump is not None:
            return Restarting(step, new_cache, scaling.jump)
        return functools.partial(step, cache=new_cache())
