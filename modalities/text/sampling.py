"""Drawing the next id from logits: temperature, top-k, top-p."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    banned: Sequence[int] = (),
) -> Tensor:
    """One id per row of logits [B, V]: int64 [B] on the CPU.

    Temperature 0 takes the most likely id. Otherwise the logits, divided by the temperature, are cut to the `top_k`
    largest and then to the smallest set whose probability reaches `top_p` (nucleus sampling, arXiv 1904.09751), and
    the id is drawn from the CPU `generator`. Ids in `banned` are never drawn.
    Raises ValueError on a setting out of range or a missing generator.
    """
    check(temperature, top_k, top_p, generator)
    logits = logits.detach().float().cpu()
    if banned:
        logits = logits.index_fill(-1, torch.tensor(list(banned)), -torch.inf)
    if temperature == 0:
        return logits.argmax(-1)
    values, order = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        values[..., top_k:] = -torch.inf
    probability = values.softmax(-1)
    if top_p is not None:
        before = probability.cumsum(-1) - probability
        probability = probability.masked_fill(before >= top_p, 0)
    chosen = torch.multinomial(probability, 1, generator=generator)
    return order.gather(-1, chosen).squeeze(-1)


def check(temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None) -> None:
    """Raises ValueError, naming the setting, where it cannot be used."""
    if not temperature >= 0:
        raise ValueError(f"temperature: got {temperature}, expected 0 (most likely) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: got {top_k}, expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, expected more than 0 and at most 1")
    if temperature > 0 and generator is None:
        raise ValueError("generator: none given, expected a torch.Generator for a temperature above 0")
