"""Weights that are zero and stay zero while a model trains: masks that hold in every forward pass."""

from __future__ import annotations

import torch
from torch import nn


def keep_zeros(parameter: nn.Parameter) -> None:
    """From now on entries that are zero get no gradient: AdamW then leaves them at zero, weight decay included.

    The mask is what is zero now, so that a run that goes on from its weights finds it again.
    """
    kept = parameter.detach() != 0

    def drop(updated: torch.Tensor) -> None:
        if updated.grad is not None:
            updated.grad.mul_(kept.to(updated.grad.device))

    parameter.register_post_accumulate_grad_hook(drop)
