"""How alike trained experts are, and what the choice of one layer tells of the next."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from zoo.moe.layer import MoE


@torch.no_grad()
def cosine(layers: list[MoE]) -> float:
    """The mean cosine between the weights of two routed experts of a layer, over pairs and layers; what all experts
    share is left out. Not a number where no layer has two of them."""
    found = []
    for layer in layers:
        experts = layer.experts
        own = [p.flatten(1) for name, p in experts.named_parameters() if name not in experts.common]
        if own and len(own[0]) > 1:
            unit = F.normalize(torch.cat(own, dim=1).double(), dim=1)
            count = len(unit)
            found.append(float((unit.sum(0).square().sum() - count) / (count * (count - 1))))
    return sum(found) / len(found) if found else math.nan


def information(chosen: np.ndarray) -> float:
    """Mutual information in nats of the first choices of neighbouring layers, the mean over neighbours: chosen
    [L, T, K]. Not a number for fewer than two layers."""
    first = chosen[:, :, 0] if chosen.size else np.zeros((0, 0), np.int64)
    if len(first) < 2:
        return math.nan
    return float(np.mean([_shared(a, b) for a, b in itertools.pairwise(first)]))


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())
