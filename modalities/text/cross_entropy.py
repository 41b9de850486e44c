"""Cross entropy over a large vocabulary that never holds the logits of more than a few hundred rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "linear_cross_entropy"
IGNORE = -100
CHUNK = 1 << 23  # logits held at a time, 32 MiB of float32
LEAST = 64  # rows of a chunk: fewer would starve the matrix product


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float = 1.0, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of logits `scale * (hidden W^T + bias)`, summed over rows, and how many rows hit.

    hidden [N, D], weight [V, D], bias [V], target [N] with -100 in rows that count nothing. Returns (loss in nats,
    number of rows whose likeliest id is the target), scalars in float32 (float64 for float64). The gradient is taken
    chunk by chunk in the forward pass, `chunk` rows at a time, so that no logits wait for the backward pass; it
    equals that of the plain form to rounding and cannot be differentiated again.
    """
    rows = max(CHUNK // len(weight), LEAST) if chunk is None else chunk
    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    wanted = [torch.is_grad_enabled() and value.requires_grad for value in inputs]
    loss, hits, _ = torch.ops.moezoo.linear_cross_entropy(hidden, weight, bias, target, scale, rows, wanted)
    return loss, hits.detach()


def _chunked(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, rows: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss, hits and the gradients of those inputs that want one; an empty tensor for the others."""
    sums = _Sums(hidden, weight, bias, wanted)
    for start in range(0, len(hidden), rows):
        sums.add(slice(start, start + rows), target[start : start + rows], scale)
    return sums.loss, sums.hits, sums.gradients


def _shapes(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, rows: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    sums = _Sums(hidden, weight, bias, wanted)
    return sums.loss, sums.hits, sums.gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    ctx.wanted = inputs[6]
    ctx.set_materialize_grads(False)  # else zeros as large as the weights for outputs that nobody differentiates
    ctx.save_for_backward(*output[2])


def _scaled(ctx: Any, outer: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if outer is None:
        return (None,) * 7
    found = [g * outer.to(g.dtype) if w else None for g, w in zip(ctx.saved_tensors, ctx.wanted, strict=True)]
    return (*found, *[None] * (7 - len(found)))


# An operator of its own, so that torch.compile does not look into the loop. Defined by hand: torch.library.custom_op
# imports the compiler when it is first called, which takes a second and 120 MB.
LIBRARY = torch.library.Library("moezoo", "FRAGMENT")
LIBRARY.define(
    f"{NAME}(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, float scale, int rows, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor[])"
)
LIBRARY.impl(NAME, _chunked, "CompositeExplicitAutograd")
torch.library.register_fake(f"moezoo::{NAME}", _shapes, lib=LIBRARY)
torch.library.register_autograd(f"moezoo::{NAME}", _scaled, setup_context=_keep, lib=LIBRARY)


class _Sums:
    """Loss, hits and gradients over the chunks so far. Sums over chunks are kept in float32 at least."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: list[bool]) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self.loss = hidden.new_zeros((), dtype=wide)
        self.hits = hidden.new_zeros((), dtype=torch.float32)
        self.of_hidden = torch.empty_like(hidden) if wanted[0] else None
        self.of_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        self.of_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None

    @property
    def gradients(self) -> list[Tensor]:
        """Of hidden, weight and bias, each in the type of its tensor; an empty one where none is wanted."""
        pairs = [(self.of_hidden, self.hidden), (self.of_weight, self.weight)]
        pairs += [] if self.bias is None else [(self.of_bias, self.bias)]
        return [like.new_empty(0) if found is None else found.to(like.dtype) for found, like in pairs]

    def add(self, rows: slice, target: Tensor, scale: float) -> None:
        """One chunk: its logits are turned into their own gradient in place."""
        hidden, real = self.hidden[rows], target != IGNORE
        picked = target.masked_fill(~real, 0).unsqueeze(1)
        logits = F.linear(hidden, self.weight, self.bias).to(self.loss.dtype)
        log = (logits if scale == 1 else logits.mul_(scale)).log_softmax(-1)
        del logits
        own = log.gather(1, picked).squeeze(1)
        self.hits += ((own == log.amax(-1)) & real).sum()
        self.loss -= own.masked_fill(~real, 0).sum()
        if self.of_hidden is None and self.of_weight is None and self.of_bias is None:
            return
        slope = log.exp_().scatter_add_(1, picked, torch.full_like(own, -1).unsqueeze(1))
        slope = (slope if scale == 1 else slope.mul_(scale)).masked_fill_(~real.unsqueeze(1), 0)
        if self.of_bias is not None:
            self.of_bias += slope.sum(0)
        slope = slope.to(hidden.dtype)
        if self.of_hidden is not None:
            self.of_hidden[rows] = slope @ self.weight.to(hidden.dtype)
        if self.of_weight is not None and self.of_weight.dtype == hidden.dtype:
            self.of_weight.addmm_(slope.T, hidden)
        elif self.of_weight is not None:
            self.of_weight += slope.T @ hidden
