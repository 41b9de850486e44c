"""Recompute: activation checkpointing changes no number and counts nothing twice."""

from __future__ import annotations

from dataclasses import replace

import torch

from zoo.laws.cases import TrunkCase, flat
from zoo.laws.law import all_close, close, law, require
from zoo.laws.probe import backward, same_stats, target
from zoo.moe.balance.step import BalanceStep


@law("checkpointed and plain training passes give the same states, gradients, statistics and counts", TrunkCase)
def checkpoint(case: TrunkCase) -> None:
    found = []
    for recompute in (False, True):
        trunk = case.trunk(replace(case.spec, checkpoint=recompute)).train()
        tokens = case.tokens()
        x = tokens.embedding.requires_grad_()
        out = trunk(tokens, seed=4)
        step = BalanceStep(trunk.moe_layers())
        if out.records:
            step.add(out.records)
        z = sum((r.routing.logits.square().sum() for r in out.records), torch.zeros(()))
        total = target(flat(out.tokens), x.flatten(0, 1), torch.ones(14, dtype=torch.bool)) + 0.1 * z
        gradients, gradient_x = backward(trunk, total, x)
        found.append((out, gradients, gradient_x, step.counts))
    (plain, gradients, gradient_x, counts), (again, gradients_2, gradient_x_2, counts_2) = found
    close(again.tokens.embedding, plain.tokens.embedding, "state")
    all_close(gradients_2, gradients, "gradient of")
    close(gradient_x_2, gradient_x, "gradient of the input")
    require(len(again.records) == len(plain.records), f"{len(again.records)} records, expected {len(plain.records)}")
    for got, expected in zip(again.records, plain.records, strict=True):
        same_stats(got.stats, expected.stats)
    for one, two in zip(counts, counts_2, strict=True):
        close(two.pack().double(), one.pack().double(), "counts of the optimiser step", 0)
