"""Which experts prompts will need, before the forward pass: for batching by expert, prefetching and caches that know
what comes (Read-ME, arXiv 2410.19123). Models whose layers are pre-gated only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from modalities.base import Tokens
from zoo.backbone.pre_gate import PreGate
from zoo.models.unified import Unified
from zoo.moe.layer import MoE
from zoo.moe.routers.base import GatedRouter
from zoo.moe.routing import RoutingContext

if TYPE_CHECKING:
    from modalities.text.continuing import Continuing


@dataclass(frozen=True)
class Lookahead:
    """expert [L, B, S, K] int64: what each token of each prompt will choose in each MoE layer, before policies; empty
    slots and padding hold the number of experts, `experts` of each layer."""

    expert: tuple[Tensor, ...]
    experts: tuple[int, ...]

    def sets(self, layer: int = 0) -> list[set[int]]:
        """The experts that each prompt needs in one MoE layer."""
        chosen, experts = self.expert[layer], self.experts[layer]
        return [set(row[row < experts].tolist()) for row in chosen]

    def needs(self, layer: int = 0) -> list[list[set[int]]]:
        """The experts of every token of each prompt in one MoE layer, padding left out: what `expert_batches` takes."""
        experts = self.experts[layer]
        found = [[set(slots) - {experts} for slots in row] for row in self.expert[layer].tolist()]
        return [[token for token in row if token] for row in found]


@torch.no_grad()
def lookahead(model: Unified, prompts: Sequence[str] | Tensor, mask: Tensor | None = None) -> Lookahead:
    """The routes of prompts, texts or ids [B, S] with a mask [B, S], from the pre-gate alone.

    They are known for prompts only: every generated token needs one step of the pre-gate first. Raises ValueError where
    a layer's router reads more than token ids.
    """
    layers = model.moe_layers()
    for index, layer in enumerate(layers):
        if not (isinstance(layer.router, GatedRouter) and isinstance(layer.router.gate.core, PreGate)):
            raise ValueError(f"router: MoE layer {index} is not pre-gated, its choice waits for the states before it")
    if not layers:
        raise ValueError("router: the model has no MoE layers")
    tokens = _rows(model, prompts, mask)
    carry = layers[0].router.begin(tokens, None, 0)
    ctx = RoutingContext.of(tokens, carry=carry)
    return Lookahead(tuple(_chosen(layer, ctx) for layer in layers), tuple(layer.pool.experts for layer in layers))


def _rows(model: Unified, prompts: Sequence[str] | Tensor, mask: Tensor | None) -> Tokens:
    device = next(model.parameters()).device
    if isinstance(prompts, Tensor):
        ids, position = prompts.to(device), None
    else:
        batch = cast("Continuing", model.modality("text")).prompt(prompts)
        ids, mask, position = batch["ids"].to(device), batch["mask"], batch["position"].to(device)
    empty = torch.zeros(*ids.shape, 0, device=device)
    return Tokens(embedding=empty, ids=ids, mask=None if mask is None else mask.to(device), position=position)


def _chosen(layer: MoE, ctx: RoutingContext) -> Tensor:
    """[B, S, K]; the layer's input is not looked at."""
    nothing = torch.zeros(len(ctx.mask), layer.dim, device=ctx.mask.device)
    return cast(Tensor, layer.router(nothing, ctx.replace(training=False)).expert).unflatten(0, ctx.shape)
