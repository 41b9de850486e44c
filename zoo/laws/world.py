"""World size: ranks that sum their counts compute together what one process computes alone.

The reduction is played here by a function; tests/distributed runs the same comparison over processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.laws.accumulation import gradients, records, whole_step
from zoo.laws.cases import LayerCase
from zoo.laws.law import all_close, close, law
from zoo.moe.balance.step import BalanceStep
from zoo.moe.layer import MoE
from zoo.moe.record import LayerRecord


def _exact(case: LayerCase) -> bool:
    """Rules whose loss over ranks is that of one process: all but those that look at one micro-batch alone."""
    losses = [rule for rule in case.spec.balance if not rule.needs_bias]
    return bool(losses) and all(getattr(rule, "scope", None) != "micro" for rule in losses)


def ranks(case: LayerCase, cut: int) -> list[tuple[MoE, BalanceStep, Tensor]]:
    """Two ranks holding rows 0..cut-1 and cut..3, after one `add`: (layer, its step, its loss)."""
    layers = [case.layer(), case.layer()]
    pieces = [records(layer, case, [cut])[rank] for rank, layer in enumerate(layers)]
    sent = [_flat_counts(layer, [piece]) for layer, piece in zip(layers, pieces, strict=True)]
    found = []
    for layer, piece in zip(layers, pieces, strict=True):
        step = BalanceStep([layer], lambda flat: sent[0] + sent[1])
        step.add([piece])
        loss = sum(step.losses([piece], 0).values(), torch.zeros(()))
        found.append((layer, step, loss))
    return found


def _flat_counts(layer: MoE, pieces: list[LayerRecord]) -> Tensor:
    """What a rank hands to the reduction."""
    sent: list[Tensor] = []

    def hand_over(flat: Tensor) -> Tensor:
        sent.append(flat)
        return flat

    BalanceStep([layer], hand_over).add(pieces)
    return sent[0]


@law("loss and gradient are the same for one rank and for two of unequal size", LayerCase, _exact)
def losses(case: LayerCase) -> None:
    whole, gradient = whole_step(case, [])
    for cut in (1, 2):
        pair = ranks(case, cut)
        total = torch.stack([loss.detach().double() for _, _, loss in pair]).sum()
        close(total, whole, f"loss of ranks cut at row {cut}")
        parts = [gradients(layer, loss) for layer, _, loss in pair]
        all_close({n: parts[0][n] + parts[1][n] for n in gradient}, gradient, "gradient of router")


@law(
    "the selection bias moves the same on every rank as in one process",
    LayerCase,
    lambda case: any(rule.needs_bias for rule in case.spec.balance),
)
def bias(case: LayerCase) -> None:
    alone = case.layer()
    step = BalanceStep([alone])
    step.add(records(alone, case, []))
    step.finish(0)
    for layer, rank_step, _ in ranks(case, 1):
        rank_step.finish(0)
        assert layer.router.bias is not None and alone.router.bias is not None
        close(layer.router.bias, alone.router.bias, "bias", 1e-7)
