"""One small transformer over token ids decides for all MoE layers before the first of them runs (Read-ME, arXiv
2410.19123)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modalities.base import Tokens
from zoo.backbone.attention.base import AttentionSpec
from zoo.backbone.attention.grouped_query import GroupedQuerySpec
from zoo.backbone.blocks.sequential import SequentialSpec
from zoo.backbone.cache import Cache
from zoo.backbone.trunk import BackboneSpec, LayersSpec
from zoo.moe.feed_forward import DenseSpec
from zoo.moe.gates.base import Gate, GateSpec
from zoo.moe.gates.drawn import DrawnGateSpec
from zoo.moe.pool import Pool
from zoo.moe.routing import RoutingContext
from zoo.spec import Cost, linear_cost

ROUTE = "pre_gate.logits"
SLOT = "pre_gate"


def _one_block() -> BackboneSpec:
    attention = GroupedQuerySpec(heads=4, bias=True, out_bias=True, scale=1.0)
    block = SequentialSpec(attention=attention, ffn=DenseSpec(hidden=256))
    return BackboneSpec(dim=64, layers=(LayersSpec(block=block),))


@dataclass(frozen=True, kw_only=True)
class PreGateSpec(DrawnGateSpec):
    """Logits of a token from its id and the ids before it, the same in all MoE layers; the layers' states are not read.

    The first MoE layer's gate holds the transformer, the others use its logits. In decoding it has a cache of its own.
    With `top_k`, k: 1 and allow_constant: true a choice weighs 1, as published: the task loss then gives it no gradient
    and it has to learn from a teacher (`distill` of the training module). `zoo.inference.lookahead` asks it which
    experts prompts will need.

    vocab     number of token ids
    trunk     the causal transformer, without MoE layers; one block of width 64, queries and keys unscaled, as published
              (whose feed-forward network is not gated)
    init_std  standard deviation of the initial embedding and of the map to logits
    """

    vocab: int
    trunk: BackboneSpec = field(default_factory=_one_block)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab < 1:
            raise ValueError(f"vocab: got {self.vocab}, expected 1 or more")
        if self.trunk.cond or self.trunk.rope.axes != 1:
            raise ValueError("trunk: reads token ids alone; expected cond: 0 and rope.axes: 1")
        for i, layers in enumerate(self.trunk.layers):
            attention = getattr(layers.block, "attention", None)
            routed = not isinstance(attention, AttentionSpec) or getattr(attention, "router", None) is not None
            if routed or any(True for _ in layers.block.mixtures()):
                raise ValueError(
                    f"trunk.layers[{i}]: expected a block without MoE layers, they would wait for this one"
                )

    @property
    def carried(self) -> bool:
        return True

    @property
    def scope(self) -> Literal["token", "sequence"]:
        return "sequence"

    def follow(self, previous: GateSpec | None, previous_pool: Pool | None, pool: Pool) -> None:
        super().follow(previous, previous_pool, pool)
        if previous is not None and previous.core != self:
            raise ValueError("type: one pre-gate decides for all layers; expected the same keys as in the layer before")

    def cost(self, dim: int, pool: Pool) -> Cost:
        """The active part of the embedding is one row."""
        width = self.trunk.dim
        return Cost(self.vocab * width, width, 0) + self.trunk.cost() + linear_cost(width, pool.columns, bias=True)

    def follow_cost(self, dim: int, pool: Pool) -> Cost:
        own = self.cost(dim, pool)
        return Cost(-own.total, -own.active, -own.flops)

    def build(self, dim: int, pool: Pool) -> PreGate:
        return PreGate(self, pool)


class PreGateNetwork(nn.Module):
    """embedding [V, d], the trunk of width d, head d -> E + Ns."""

    def __init__(self, spec: PreGateSpec, columns: int) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab, spec.trunk.dim, dtype=torch.float32)
        self.trunk = spec.trunk.build()
        self.head = nn.Linear(spec.trunk.dim, columns, dtype=torch.float32)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws embedding and head anew; the trunk keeps what its parts drew."""
        nn.init.normal_(self.embedding.weight, std=self.spec.init_std)
        nn.init.normal_(self.head.weight, std=self.spec.init_std)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tokens, cache: Cache | None = None) -> Tensor:
        """Rows with ids [B, S] -> logits [B * S, E + Ns]; a token without an id (-1) embeds as zero."""
        if tokens.ids is None:
            raise ValueError("ids: missing; a pre-gate reads token ids, which this modality does not give")
        ids = tokens.ids[..., None]
        embedding = torch.where(ids >= 0, self.embedding(tokens.ids.clamp(min=0)), 0)
        position = None if tokens.position is None else tokens.position[..., :1]
        with torch.autocast(embedding.device.type, enabled=False):
            rows = tokens.replace(embedding=embedding, position=position, cond=None)
            state = self.trunk(rows, cache).tokens.embedding
            logits: Tensor = self.head(state.nan_to_num(0)).flatten(0, 1)
        return logits


class PreGate(Gate):
    """The first MoE layer's holds the `network`; the later ones find its logits in their carry."""

    def __init__(self, spec: PreGateSpec, pool: Pool) -> None:
        super().__init__(pool)
        self.network: PreGateNetwork | None = PreGateNetwork(spec, pool.columns)
        self._first: tuple[PreGate, ...] = ()  # in a tuple, so that its network is registered once

    @property
    def common(self) -> nn.Module | None:
        return self.network

    def reset_parameters(self) -> None:
        """Draws embedding and head anew, where this gate holds them."""
        if self.network is not None:
            self.network.reset_parameters()

    def link(self, earlier: Sequence[Gate]) -> None:
        for gate in earlier:
            if isinstance(gate.core, PreGate):
                self.network, self._first = None, (gate.core,)
                return

    def begin(self, tokens: Tokens, cache: Any) -> dict[str, Tensor]:
        """The logits of all tokens, from the first layer's gate."""
        if self.network is None:
            return {}
        slot: Cache | None = None
        if cache is not None:
            slot = cache.inner.setdefault(SLOT, self.network.trunk.new_cache())
        return {ROUTE: self.network(tokens, slot)}

    def logits(self, x: Tensor, ctx: RoutingContext) -> Tensor:
        """Those of the carry; a layer that stands alone asks the network itself."""
        if ROUTE in ctx.carry:
            return ctx.carry[ROUTE]
        network = self._first[0].network if self._first else self.network
        assert network is not None
        flat = {"ids": ctx.ids, "mask": ctx.mask, "document": ctx.document, "position": ctx.position}
        rows = {
            name: None if value is None else value.view(*ctx.shape, *value.shape[1:]) for name, value in flat.items()
        }
        logits: Tensor = network(Tokens(embedding=x.view(*ctx.shape, x.shape[-1]), **rows))
        return logits
