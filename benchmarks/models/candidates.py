"""The same checkpoint as transformers runs it, with each of its expert implementations, and as we do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.shapes import Model

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")


@dataclass(frozen=True)
class Candidate:
    """A model ready to run.

    logits    ids [B, S] -> [B, S, V]
    generate  (ids [B, S], n) -> ids [B, S + n], the likeliest ones
    loss      ids [B, S] -> mean cross entropy of each next id
    """

    name: str
    family: str
    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    generate: Callable[[Tensor, int], Tensor]
    loss: Callable[[Tensor], Tensor]


def write_checkpoint(model: Model, folder: Path) -> None:
    """A random model as transformers saves it."""
    import transformers

    config = getattr(transformers, model.architecture)(**model.fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def build(folder: Path) -> list[Candidate]:
    """All candidates of a checkpoint, ours last: as it is loaded, and packed."""
    theirs = [_theirs(folder, implementation) for implementation in IMPLEMENTATIONS]
    return [*theirs, _ours(folder, pack=False), _ours(folder, pack=True)]


def _theirs(folder: Path, implementation: str) -> Candidate:
    from transformers import AutoModelForCausalLM, GenerationConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation=implementation, attn_implementation="sdpa"
        ).eval()

    def generate(ids: Tensor, count: int) -> Tensor:
        # min_new_tokens would add a processor that ours does not run; without an end id every row runs to the end
        how = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
        found: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
        return found

    return Candidate(
        f"transformers {implementation}",
        "transformers",
        model,
        lambda ids: model(ids).logits,
        generate,
        lambda ids: model(ids, labels=ids).loss,
    )


def _ours(folder: Path, *, pack: bool) -> Candidate:
    import zoo

    model: Any = zoo.load(folder, pack=pack)

    def generate(ids: Tensor, count: int) -> Tensor:
        found: Tensor = model.generate(ids, max_new_tokens=count, temperature=0, eos=())
        return found

    return Candidate(
        "moezoo packed" if pack else "moezoo",
        "moezoo",
        model,
        lambda ids: model(ids).logits,
        generate,
        lambda ids: model(ids, labels=ids).loss,
    )
