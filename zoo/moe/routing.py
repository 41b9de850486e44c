"""What a router decides, and what it may look at.

Shape letters: T tokens of the flat batch, K slots, E routed and null experts, Ns shared experts weighed by the
router, N rows sent to routed experts, R routed experts, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from modalities.base import Tokens

R = TypeVar("R")


def changed(value: R, changes: Mapping[str, Any]) -> R:
    """A copy of a dataclass without slots, some of its fields exchanged: what dataclasses.replace gives, at a tenth of
    its cost, which every layer pays in every step of decoding. Raises TypeError for a field that there is not."""
    fields = vars(value)
    if torch.compiler.is_compiling() or not changes.keys() <= fields.keys():
        return dataclasses.replace(value, **changes)  # type: ignore[type-var]
    copied = object.__new__(type(value))
    vars(copied).update(fields, **changes)
    return copied


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The decision for every token of a flat batch.

    expert  [T, K] int64     chosen expert per slot, in order of choice; an empty slot holds E
    gate    [T, K] float     its weight, 0 in an empty slot (a full slot may weigh 0)
    raw     [T, E + Ns]      noise-free logits, never softmaxed; shared columns last
    scores  [T, E]           what selection ranked, -inf where not eligible
    mask    [T] bool         False on padding and on non-finite tokens: never load, never loss
    shared  [T, Ns] | None   weights of the shared experts where the router decides them (None = 1)
    chosen  [T, K] | None    `expert` before policies edited it (None = unedited); balance counts these
    carry   name -> tensor   what the router hands to the next layer's (recurrent state, logits)
    update  name -> tensor   sums over the real tokens of this batch for the router's running statistics, with the same
                             names and shapes in every batch; see Router.update
    """

    expert: Tensor
    gate: Tensor
    raw: Tensor
    scores: Tensor
    mask: Tensor
    shared: Tensor | None = None
    chosen: Tensor | None = None
    carry: Mapping[str, Tensor] = field(default_factory=dict)
    update: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def experts(self) -> int:
        """E, the number of routed and null experts."""
        return self.scores.shape[1]

    @property
    def logits(self) -> Tensor:
        """[T, E] what losses see: noise-free, without the shared columns."""
        return self.raw[:, : self.experts]

    @property
    def selected(self) -> Tensor:
        """[T, K] the router's own choice, before policies."""
        return self.expert if self.chosen is None else self.chosen

    @property
    def full(self) -> Tensor:
        """[T, K] bool: slots that hold an expert."""
        return self.expert < self.experts

    def replace(self, **changes: Any) -> Routing:
        """A copy with some fields exchanged."""
        return changed(self, changes)

    @classmethod
    def from_mask(
        cls, keep: Tensor, gate: Tensor, *, raw: Tensor, scores: Tensor, mask: Tensor, **more: Any
    ) -> Routing:
        """From a dense choice: keep [T, E] bool and gate [T, E]. K = E; slots are ordered by score."""
        experts = keep.shape[1]
        order = scores.masked_fill(~keep, -torch.inf).argsort(dim=1, descending=True, stable=True)
        kept = keep.gather(1, order)
        expert = torch.where(kept, order, experts)
        weight = torch.where(kept, gate.gather(1, order), 0)
        return cls(expert=expert, gate=weight, raw=raw, scores=scores, mask=mask, **more)

    @classmethod
    def from_expert_choice(
        cls, index: Tensor, gate: Tensor, *, raw: Tensor, scores: Tensor, mask: Tensor, **more: Any
    ) -> Routing:
        """From experts that choose tokens: index [E, C] token ids and gate [E, C]; masked tokens are never served."""
        keep = torch.zeros_like(scores, dtype=torch.bool)
        weight = torch.zeros_like(scores)
        column = torch.arange(index.shape[0], device=index.device)[:, None].expand_as(index)
        keep = keep.index_put((index, column), torch.ones_like(index, dtype=torch.bool)) & mask[:, None]
        weight = weight.index_put((index, column), gate.to(weight.dtype))
        return cls.from_mask(keep, weight, raw=raw, scores=scores, mask=mask, **more)


@dataclass(frozen=True, kw_only=True)
class RoutingContext:
    """What a router, policy or expert may look at besides x. Flat over T = B * S tokens, row by row.

    shape (B, S); mask [T] bool; position [T, P]; document, modality, ids [T]; cond [B, C]; weight [T] of each token in
    balance statistics; layer the index of the MoE layer; step the optimiser step as a tensor; groups the number of
    device groups; local_experts ids held on this rank; exclude [T, E] bool, experts a token may not choose; carry what
    the layer before handed over; generator the source of noise (None draws none).
    """

    shape: tuple[int, int]
    mask: Tensor
    position: Tensor | None = None
    document: Tensor | None = None
    modality: Tensor | None = None
    ids: Tensor | None = None
    cond: Tensor | None = None
    weight: Tensor | None = None
    layer: int = 0
    step: Tensor | None = None
    training: bool = False
    generator: torch.Generator | None = None
    groups: int | None = None
    local_experts: Tensor | None = None
    exclude: Tensor | None = None
    carry: Mapping[str, Tensor] = field(default_factory=dict)

    def replace(self, **changes: Any) -> RoutingContext:
        """A copy with some fields exchanged."""
        return changed(self, changes)

    @classmethod
    def of(cls, tokens: Tokens, **more: Any) -> RoutingContext:
        """The context of a batch of token rows."""
        rows, length = tokens.shape
        mask = tokens.mask
        if mask is None:
            mask = torch.ones(rows, length, dtype=torch.bool, device=tokens.embedding.device)

        def flat(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.reshape(rows * length, *value.shape[2:])

        return cls(
            shape=(rows, length),
            mask=mask.reshape(-1),
            cond=tokens.cond,
            position=flat(tokens.position),
            document=flat(tokens.document),
            modality=flat(tokens.modality),
            ids=flat(tokens.ids),
            weight=flat(tokens.weight),
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows sent to routed experts, sorted by expert; rows behind sum(counts) are padding and must come out as zero.

    x [N, D]; counts [R] int64 rows per expert; token [N] index into the flat batch; gate [N] weight of the slot.
    """

    x: Tensor
    counts: Tensor
    token: Tensor
    gate: Tensor
