"""What a callback must offer to have a say in optimiser steps, or to look into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from modalities.base import Batch
from zoo.moe.balance.step import BalanceStep
from zoo.moe.record import LayerRecord

Micro = tuple[str, Batch]  # the name of a modality in the model, and a batch of it


@runtime_checkable
class Guard(Protocol):
    """Asked at every step on every rank, with figures that are the same on all of them, and must answer alike there."""

    def amend(self, step: int, batch: Sequence[Micro]) -> Sequence[Micro]:
        """The micro-batches that the step shall hold."""
        ...

    def allow(self, step: int, loss: float, norm: float, batch: Sequence[Micro]) -> float:
        """A factor on the step's learning rate, 0 to leave the step out: optimiser state, selection biases and schedule
        then stay as they are. loss and norm (before clipping) are those of the whole step; batch is as amended."""
        ...


@runtime_checkable
class Listener(Protocol):
    """Told of every micro-batch before its backward pass, on every rank."""

    def hear(self, step: int, records: Sequence[LayerRecord], balance: BalanceStep, tokens: Tensor) -> None:
        """records of its MoE layers, the step's balance, and the tokens of the whole step over all ranks, which balance
        losses are divided by. What it hangs on the records' tensors sees gradients of the step's loss times the ranks.
        """
        ...
