"""Cross entropy over a large vocabulary that never holds the logits of more than a few hundred rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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
    found: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(hidden, weight, bias, target, scale, chunk)
    return found


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, chunk: int | None
    ) -> tuple[Tensor, Tensor]:
        sums = _Sums(hidden, weight, bias, ctx.needs_input_grad[:3])
        rows = max(CHUNK // len(weight), LEAST) if chunk is None else chunk
        for start in range(0, len(hidden), rows):
            sums.add(slice(start, start + rows), target[start : start + rows], scale)
        ctx.save_for_backward(*sums.gradients)
        ctx.mark_non_differentiable(sums.hits)
        return sums.loss, sums.hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = [None if g is None else g * outer.to(g.dtype) for g in ctx.saved_tensors]
        return (*saved, None, None, None)


class _Sums:
    """Loss, hits and gradients over the chunks so far. Sums over chunks are kept in float32 at least."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self.loss = hidden.new_zeros((), dtype=wide)
        self.hits = hidden.new_zeros((), dtype=torch.float32)
        self.of_hidden = torch.empty_like(hidden) if wanted[0] else None
        self.of_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        self.of_bias = torch.zeros_like(bias, dtype=wide) if wanted[2] and bias is not None else None

    @property
    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of hidden, weight and bias, None where they need none, each in the type of its tensor."""
        of_weight = None if self.of_weight is None else self.of_weight.to(self.weight.dtype)
        of_bias = None if self.of_bias is None or self.bias is None else self.of_bias.to(self.bias.dtype)
        return self.of_hidden, of_weight, of_bias

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
