"""How text is continued, in one place; and drawing the next id from logits."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor


class SamplingKeys(TypedDict, total=False):
    """The keys of Sampling as keyword arguments."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    stop: str | Sequence[str]
    eos: int | Sequence[int] | None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How text is continued. Logits are changed in the order of these keys' second group, as in transformers.

    max_new_tokens      most ids that are added

    repetition_penalty  logits of ids that the prompt or the text so far holds: divided by it where above 0, else
                        multiplied (arXiv 1909.05858); 1 for none
    temperature         divides the logits; 0 takes the likeliest id and leaves out what follows
    top_k               keeps the k likeliest ids
    top_p               keeps the smallest set of likeliest ids whose probability reaches it (arXiv 1904.09751)
    min_p               keeps ids at least this probable, as a share of the likeliest one's (arXiv 2407.01082)

    stop                texts that end a row and are cut off; one that is a special token of the tokenizer counts too
    eos                 ids that end a row; None for the tokenizer's own

    One stop text and one eos id may stand without brackets. Raises ValueError naming the key that cannot be used.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    eos: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        stop: Any = self.stop
        eos: Any = self.eos
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
        object.__setattr__(self, "eos", (eos,) if isinstance(eos, int) else eos if eos is None else tuple(eos))
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {self.max_new_tokens}, expected at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: got {self.temperature}, expected 0 (most likely) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: got {self.top_k}, expected at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, expected more than 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: got {self.min_p}, expected 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty: got {self.repetition_penalty}, expected a number above 0")
        if not all(self.stop):
            raise ValueError("stop: got an empty text, expected at least one character")

    def but(self, changes: SamplingKeys) -> Sampling:
        """With some keys exchanged. Raises TypeError naming the nearest key for one that there is not."""
        known = [f.name for f in dataclasses.fields(self)]
        for key in changes:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise TypeError(f"no setting {key!r} of generation{hint}; there are {', '.join(known)}")
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def draw(
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    banned: Sequence[int] = (),
    seen: Tensor | None = None,
) -> Tensor:
    """One id per row of logits [B, V]: int64 [B] on the CPU, the only time that a device is waited for.

    seen [B, V] is True for ids that the repetition penalty concerns; ids in `banned` are never drawn. At a temperature
    above 0 each row takes one number from the CPU `generator`, so that a seed means the same on every device.
    Raises ValueError on a missing generator.
    """
    if sampling.temperature > 0 and generator is None:
        raise ValueError("generator: none given, expected a torch.Generator for a temperature above 0")
    logits = logits.detach().float()
    if banned:
        logits = logits.index_fill(-1, torch.tensor(list(banned), device=logits.device), -torch.inf)
    if seen is not None:
        logits = penalised(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(-1).cpu()
    probability, ids = kept(logits / sampling.temperature, sampling)
    below = probability.double().cumsum(-1)
    number = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator).to(logits.device)
    chosen = torch.searchsorted(below, number * below[:, -1:], right=True).clamp(max=below.shape[1] - 1)
    return (chosen if ids is None else ids.gather(-1, chosen)).squeeze(-1).cpu()


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, V], those that `seen` [B, V] marks made less likely by a penalty above 1, more likely below."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def kept(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Probabilities [B, n] after top_k, top_p and min_p, 0 where cut, and their ids [B, n]; None for all in order.

    They need not sum to 1. Only what may be left is ever sorted.
    """
    ids: Tensor | None = None
    top_p = None if sampling.top_p == 1 else sampling.top_p
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits, ids = logits.topk(sampling.top_k, dim=-1)
    probability = logits.softmax(-1)
    if top_p is not None and ids is None:
        probability, ids = probability.topk(_reach(probability, top_p), dim=-1)
    if top_p is not None:
        before = probability.cumsum(-1) - probability
        probability = probability.masked_fill(before >= top_p, 0)
    if sampling.min_p is not None:
        best = probability.amax(-1, keepdim=True)
        probability = probability.masked_fill(probability < sampling.min_p * best, 0)
    return probability, ids


def _reach(probability: Tensor, top_p: float) -> int:
    """How many of the likeliest ids of [B, V] can matter: all below (1 - top_p) / V together weigh less than 1 - top_p.

    Sorting a whole vocabulary takes longer than all else; on a GPU it is quicker than waiting for this number.
    """
    size = probability.shape[-1]
    if probability.device.type != "cpu":
        return size
    return max(int((probability >= (1 - top_p) / size).sum(-1).max()), 1)
