"""The trunk: a stack of blocks over token rows, ending in a norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modalities.base import Tokens
from zoo.backbone.adapters.base import AdapterSpec, Map, maps_of
from zoo.backbone.attention import Attention, AttentionSpec
from zoo.backbone.blocks.base import BlockSpec, Place
from zoo.backbone.blocks.routed_attention import RoutedAttentionSpec
from zoo.backbone.cache import Cache
from zoo.backbone.chain import chain_cost, check_chain
from zoo.backbone.context import BlockContext, Carry
from zoo.backbone.inner import InnerMoE, inside, run
from zoo.backbone.mask import visibility
from zoo.backbone.norm import NormKind, build_norm, norm_cost
from zoo.backbone.rope import RopeSpec, rotation
from zoo.moe.feed_forward import FeedForwardSpec
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord
from zoo.moe.routing import RoutingContext
from zoo.spec import Cost

MOST = 1 << 16  # equal blocks in a row: a description from elsewhere cannot make us list more


@dataclass(frozen=True, kw_only=True)
class LayersSpec:
    """Equal blocks in a row.

    repeat  how many, at most 65536
    block   what each is
    """

    repeat: int = 1
    block: BlockSpec

    def __post_init__(self) -> None:
        if not 1 <= self.repeat <= MOST:
            raise ValueError(f"repeat: got {self.repeat}, expected 1..{MOST}")


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """The trunk.

    dim         width D
    layers      groups of equal blocks, in order
    rope        rotary positions
    norm        kind of the blocks' norms and the final one: rms or layer (with bias; PhiMoE)
    norm_eps    epsilon of all norms
    final_eps   that of the final norm, or null for norm_eps (JetMoE)
    cond        width of the rows' conditioning, 0 for none
    checkpoint  recompute activations of blocks in the backward pass instead of keeping them
    adapter     what stands beside linear maps of the blocks, or null for nothing
    """

    dim: int
    layers: tuple[LayersSpec, ...]
    rope: RopeSpec = RopeSpec()
    norm: NormKind = "rms"
    norm_eps: float = 1e-6
    final_eps: float | None = None
    cond: int = 0
    checkpoint: bool = False
    adapter: AdapterSpec | None = None

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim: got {self.dim}, expected 1 or more")
        if not self.layers:
            raise ValueError("layers: got none, expected at least one")
        if self.cond < 0:
            raise ValueError(f"cond: got {self.cond}, expected 0 or more")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps: got {self.norm_eps}, expected more than 0")
        if self.final_eps is not None and self.final_eps <= 0:
            raise ValueError(f"final_eps: got {self.final_eps}, expected more than 0, or null")
        for i, layers in enumerate(self.layers):
            try:
                layers.block.check(self.dim, self.cond)
            except ValueError as error:
                raise ValueError(f"layers[{i}].block.{error}") from error
            for name, ffn in _feed_forwards(layers.block):
                try:
                    ffn.check(self.dim)
                except ValueError as error:
                    raise ValueError(f"layers[{i}].block.{name}.{error}") from error
            self._check_rope(layers.block)
        check_chain(self.blocks())
        self._check_cond()
        if self.adapter is not None:
            try:
                self.adapter.check(self.maps())
            except ValueError as error:
                raise ValueError(f"adapter.{error}") from error

    def blocks(self) -> list[tuple[str, BlockSpec]]:
        """(path, description) of every block, repeated ones as often as they are."""
        return [
            (f"layers[{i}].block", layers.block) for i, layers in enumerate(self.layers) for _ in range(layers.repeat)
        ]

    def maps(self) -> list[dict[str, Map]]:
        """For each block the linear maps that an adapter can stand beside, by name; without weights."""
        found = []
        with torch.device("meta"):
            for layers in self.layers:
                block = layers.block.build(self.dim, Place(0, 0, self.norm_eps, self.cond, self.norm))
                found += [maps_of(block)] * layers.repeat
        return found

    def _check_cond(self) -> None:
        """Conditioning that no block reads would be dropped in silence."""
        if self.cond and not any(layers.block.conditioned for layers in self.layers):
            raise ValueError(
                f"cond: got {self.cond}, but no block reads the conditioning; expected 0, or a conditioned block in "
                "layers (such as adaln)"
            )

    def _check_rope(self, block: BlockSpec) -> None:
        """Rotary positions fit the heads of every attention in a block."""
        for field in dataclasses.fields(block):
            attention = getattr(block, field.name)
            turned = attention.rotary(self.dim) if isinstance(attention, AttentionSpec | RoutedAttentionSpec) else 0
            if turned:
                try:
                    self.rope.check(turned)
                except ValueError as error:
                    raise ValueError(f"rope.{error}") from error

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(layers.repeat for layers in self.layers)

    def cost(self, length: float = 0) -> Cost:
        """Of the whole trunk, for a token that sees `length` keys."""
        norm = norm_cost(self.norm, self.dim)
        total = norm  # the final one
        for layers in self.layers:
            total = total + layers.block.cost(self.dim, length, self.cond, norm).times(layers.repeat)
        total = total + chain_cost(self.blocks(), self.dim)
        return total if self.adapter is None else total + self.adapter.cost(self.maps())

    def build(self) -> Backbone:
        """The module."""
        return Backbone(self)


def _feed_forwards(block: BlockSpec) -> Iterator[tuple[str, FeedForwardSpec]]:
    """The feed-forward layers that a block's description names, with their keys."""
    for field in dataclasses.fields(block):
        value = getattr(block, field.name)
        if isinstance(value, FeedForwardSpec):
            yield field.name, value
        elif isinstance(value, tuple):
            yield from ((f"{field.name}[{i}]", v) for i, v in enumerate(value) if isinstance(v, FeedForwardSpec))


@dataclass(frozen=True)
class BackboneOutput:
    """tokens with the final normed states [B, S, D]; a record per MoE layer; all block outputs where asked for."""

    tokens: Tokens
    records: tuple[LayerRecord, ...]
    hidden: tuple[Tensor, ...] = ()


class Backbone(nn.Module):
    """See BackboneSpec."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.blocks = nn.ModuleList()
        self.inner: list[tuple[list[InnerMoE], int]] = []  # of each block, with the number of the first
        attention = moe = 0
        for layers in spec.layers:
            for _ in range(layers.repeat):
                block = layers.block.build(spec.dim, Place(attention, moe, spec.norm_eps, spec.cond, spec.norm))
                if spec.adapter is not None:
                    spec.adapter.attach(block, len(self.blocks), spec.depth)
                inner = inside(block)
                self.inner.append((inner, moe + len(block.moes)))
                attention, moe = attention + len(block.attentions), moe + len(block.moes) + len(inner)
                self.blocks.append(block)
        attentions: list[Attention] = [a for block in self.blocks for a in block.attentions]  # type: ignore[union-attr]
        self.windows = [a.window for a in attentions]
        self.turned = sorted({a.rotary for a in attentions if a.rotary})
        self.norm = build_norm(spec.norm, spec.dim, spec.norm_eps if spec.final_eps is None else spec.final_eps)
        if spec.adapter is not None:
            spec.adapter.hold(self)
        routers = [layer.router for layer in self.moe_layers()]
        for index, router in enumerate(routers):
            router.link(routers[:index])

    def moe_layers(self) -> list[MoE]:
        """The MoE layers in the order of their records."""
        layers: list[MoE] = []
        for block, (inner, _) in zip(self.blocks, self.inner, strict=True):
            layers += [*block.moes, *inner]  # type: ignore[misc]
        return layers

    def new_cache(self) -> Cache:
        """An empty key/value cache."""
        return Cache(self.windows)

    def forward(
        self,
        tokens: Tokens,
        cache: Cache | None = None,
        *,
        step: Tensor | None = None,
        seed: int | None = None,
        output_hidden: bool = False,
    ) -> BackboneOutput:
        """tokens -> final states and records. With a cache, `tokens` are the new ones only.

        step is the optimiser step (schedules inside routers); seed draws the routers' noise in training. Where tokens
        have a mask, one that is not finite counts as padding and its own state comes out NaN; without a mask (the
        fast path) it spreads.
        """
        finite = None
        if tokens.mask is not None:
            finite = (tokens.embedding.detach() * 0).sum(-1, keepdim=True) == 0
            clean = torch.where(finite, tokens.embedding, 0)
            tokens = tokens.replace(embedding=clean, mask=tokens.mask & finite[..., 0])
        ctx = self._context(tokens, cache, step, seed)
        carry = Carry(values=self._begin(tokens, cache))
        x, hidden = tokens.embedding, []
        for block, (inner, first) in zip(self.blocks, self.inner, strict=True):
            if self.spec.checkpoint and self.training and cache is None and torch.is_grad_enabled():
                x, carry = checkpoint(run, block, inner, first, x, carry, ctx, use_reentrant=False)
            else:
                x, carry = run(block, inner, first, x, carry, ctx)
            if output_hidden:
                hidden.append(x)
        state = self.norm(x)
        if finite is not None:
            state = torch.where(finite, state, torch.nan)
        return BackboneOutput(tokens.replace(embedding=state), carry.records, tuple(hidden))

    def _begin(self, tokens: Tokens, cache: Cache | None) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for index, layer in enumerate(self.moe_layers()):
            values.update(layer.router.begin(tokens, cache, index))
        return values

    def _context(self, tokens: Tokens, cache: Cache | None, step: Tensor | None, seed: int | None) -> BlockContext:
        position, rope = tokens.position, self.spec.rope
        if position is None:
            start = 0 if cache is None else cache.length
            index = torch.arange(start, start + tokens.shape[1], device=tokens.embedding.device)
            position = index.view(1, -1, 1)
        return BlockContext(
            routing=RoutingContext.of(tokens, step=step, training=self.training),
            rope={turned: rotation(position, rope, turned, tokens.mask) for turned in self.turned},
            visible=visibility(tokens, cache, set(self.windows)),
            cond=tokens.cond,
            cache=cache,
            seed=seed,
        )
