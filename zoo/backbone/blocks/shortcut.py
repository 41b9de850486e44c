"""A block whose MoE layer reads an early state and answers at the end (ScMoE, LongCat-Flash)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from zoo.backbone.attention import Attention, AttentionSpec
from zoo.backbone.blocks.base import Block, BlockSpec, Place, context_of, record
from zoo.backbone.context import BlockContext, Carry
from zoo.moe.experts.ffn import fan_in_, zero_
from zoo.moe.feed_forward import DenseSpec
from zoo.moe.layer import Handle, MoE
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats
from zoo.spec import Cost, linear_cost


@dataclass(frozen=True, kw_only=True)
class ShortcutSpec(BlockSpec):
    """Sub-layers of attention and a dense network, each around a residual behind a norm, one after the other. One MoE
    layer reads a state of the first of them and is added to the output of the last, so that nothing in between waits
    for it.

    ScMoE (arXiv 2404.05019): two sub-layers, the second dense network being the shared expert, source input (Pos-3),
    attention (Pos-2) or output (Pos-1); for MoE in every block one sub-layer and source input. LongCat-Flash (arXiv
    2509.01322): two sub-layers, source attention, own_norm false. PR-MoE's residual layer (DeepSpeed-MoE, arXiv
    2201.05596): one sub-layer, source attention, own_norm false, combine add, or softmax with combine_bias.

    attention  the attention of every sub-layer
    dense      the dense network of each sub-layer, in order; as many sub-layers as there are networks
    moe        the MoE layer
    source     what the MoE layer reads: the first sub-layer's input, its state after attention, or its output
    own_norm   whether it has a norm of its own; else it reads that state as the dense path's next norm gives it
    combine    how the last dense network and the MoE layer are added: add, sigmoid (the network times sigmoid(w u);
               ScMoE's CG-1), softmax (both weighed by softmax(W u); CG-2), u being what that network reads
    combine_bias  whether that map of u has a bias
    """

    attention: AttentionSpec
    dense: tuple[DenseSpec, ...]
    moe: MoESpec
    source: Literal["input", "attention", "output"] = "attention"
    own_norm: bool = True
    combine: Literal["add", "sigmoid", "softmax"] = "add"
    combine_bias: bool = False

    def __post_init__(self) -> None:
        if not self.dense:
            raise ValueError("dense: got none, expected one network per sub-layer")
        if not all(isinstance(dense, DenseSpec) for dense in self.dense):
            raise ValueError("dense: expected networks of type dense")
        if not isinstance(self.moe, MoESpec):
            raise ValueError("moe: expected a layer of type moe")
        if self.source == "output" and len(self.dense) == 1:
            raise ValueError(
                "source: got 'output' with one sub-layer, expected 'input' or 'attention', or two in dense"
            )
        if self.combine_bias and not self.coefficients:
            raise ValueError("combine_bias: got true with combine add, which has no map; expected sigmoid or softmax")

    def check(self, dim: int, cond: int) -> None:
        try:
            self.attention.check(dim)
        except ValueError as error:
            raise ValueError(f"attention.{error}") from error

    def cost(self, dim: int, length: float, cond: int, norm: Cost) -> Cost:
        layers = (self.attention.cost(dim, length) + norm.times(2)).times(len(self.dense))
        for dense in self.dense:
            layers = layers + dense.cost(dim)
        extra = norm if self.own_norm else Cost()
        return layers + self.moe.cost(dim) + extra + linear_cost(dim, self.coefficients, self.combine_bias)

    @property
    def coefficients(self) -> int:
        """Weights that the sum of network and MoE layer takes."""
        return {"add": 0, "sigmoid": 1, "softmax": 2}[self.combine]

    def build(self, dim: int, place: Place) -> Shortcut:
        return Shortcut(self, dim, place)


class Shortcut(Block):
    """See ShortcutSpec. Lists hold one module per sub-layer."""

    def __init__(self, spec: ShortcutSpec, dim: int, place: Place) -> None:
        super().__init__()
        count = len(spec.dense)
        self.source, self.layer = spec.source, place.moe
        self.attention_norm = nn.ModuleList(place.norm(dim) for _ in range(count))
        self.attention = nn.ModuleList(spec.attention.build(dim, place.attention + i, place.eps) for i in range(count))
        self.dense_norm = nn.ModuleList(place.norm(dim) for _ in range(count))
        self.dense = nn.ModuleList(dense.build(dim) for dense in spec.dense)
        self.moe = cast(MoE, spec.moe.build(dim))
        self.moe_norm = place.norm(dim) if spec.own_norm else None
        self.combine = nn.Linear(dim, spec.coefficients, bias=spec.combine_bias) if spec.coefficients else None
        if self.combine is not None:
            fan_in_(self.combine.weight)
            zero_(self.combine.bias)

    @property
    def attentions(self) -> list[Attention]:  # type: ignore[override]
        return cast(list[Attention], list(self.attention))

    @property
    def moes(self) -> list[MoE]:  # type: ignore[override]
        return [self.moe]

    def forward(self, x: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Tensor, Carry]:
        handle, last = None, len(self.dense) - 1
        for i, attention in enumerate(self.attention):
            read = self.attention_norm[i](x)
            if (i, self.source) in ((0, "input"), (1, "output")):
                handle, carry = self._start(x, read, carry, ctx)
            x = x + attention(read, ctx)
            read = self.dense_norm[i](x)
            if (i, self.source) == (0, "attention"):
                handle, carry = self._start(x, read, carry, ctx)
            y = self.dense[i](read)
            if i == last:
                assert handle is not None
                y = self._combined(read, y, self._finish(handle).view_as(y))
            x = x + y
        return x, carry

    def _start(self, x: Tensor, read: Tensor, carry: Carry, ctx: BlockContext) -> tuple[Handle, Carry]:
        """Begins the MoE layer's work on a state x [B, S, D], of which `read` is what the dense path's norm gives."""
        routing_ctx = context_of(self.moe, self.layer, carry, ctx)
        flat = (read if self.moe_norm is None else self.moe_norm(x)).flatten(0, 1)
        routing = self.moe.route(flat, routing_ctx)
        handle = self.moe.start(flat, routing, routing_ctx)
        return handle, record(carry, routing, Stats(routing, self.moe.pool), routing_ctx)

    def _finish(self, handle: Handle) -> Tensor:
        """[T, D] what the MoE layer answers."""
        y = self.moe.finish(handle)
        return y if self.moe.shared_experts is None else y + self.moe.shared(handle.x, handle.routing)

    def _combined(self, read: Tensor, dense: Tensor, routed: Tensor) -> Tensor:
        if self.combine is None:
            return dense + routed
        weight = self.combine(read)
        if weight.shape[-1] == 1:
            return torch.sigmoid(weight) * dense + routed
        weight = torch.softmax(weight, dim=-1)
        return weight[..., :1] * dense + weight[..., 1:] * routed
