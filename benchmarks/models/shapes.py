"""The language models that are measured, what is measured of them, and the figures the project wants to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.layer.shapes import Target

Job = Literal["prefill", "decode 1", "decode 8", "train", "memory"]
JOBS: tuple[Job, ...] = ("prefill", "decode 1", "decode 8", "train", "memory")
BEST, SHARED = "transformers' best", "transformers' least"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A random checkpoint of transformers' making, and the sizes of the jobs.

    architecture  configuration class of transformers
    fields        of its configuration
    prefill       tokens of a prompt
    decode        tokens written after a prompt of `prompt` tokens
    rows, length  of a training step's batch
    targets       per job
    """

    name: str
    architecture: str
    fields: Mapping[str, Any]
    prefill: int = 512
    prompt: int = 16
    decode: int = 64
    rows: int = 4
    length: int = 256
    targets: tuple[tuple[Job, Target], ...] = ()

    @property
    def chosen_bytes(self) -> int:
        """Of the weights of one token's experts in one layer, in float32."""
        return 12 * int(
            self.fields["num_experts_per_tok"] * self.fields["hidden_size"] * self.fields["intermediate_size"]
        )

    def tiny(self) -> Model:
        """The same jobs on a model that costs nothing, to check the program."""
        small = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 64}
        return replace(
            self, fields={**self.fields, **small}, prefill=8, prompt=4, decode=3, rows=2, length=8, targets=()
        )


def _times(slowest: Mapping[Job, float]) -> tuple[tuple[Job, Target], ...]:
    """Times against transformers' best, memory against the least that transformers takes."""
    bases = {job: SHARED if job == "memory" else BEST for job in slowest}
    return tuple((job, Target(base=bases[job], limit=limit)) for job, limit in slowest.items())


OLMOE = Model(
    name="olmoe",
    architecture="OlmoeConfig",
    fields={
        "num_hidden_layers": 16, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8,
        "num_experts": 64, "num_experts_per_tok": 8, "intermediate_size": 256, "vocab_size": 32768,
        "pad_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    },
    targets=_times({"prefill": 1 / 1.3, "decode 1": 1 / 1.5, "decode 8": 1 / 1.5, "train": 1 / 1.5, "memory": 0.8}),
)  # fmt: skip
MIXTRAL = Model(
    name="mixtral",
    architecture="MixtralConfig",
    fields={
        "num_hidden_layers": 8, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4,
        "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 1792, "vocab_size": 32768,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    },
    targets=_times({"prefill": 1.0, "decode 1": 1.0, "decode 8": 1.0, "train": 1.0, "memory": 0.8}),
)  # fmt: skip
MODELS = {model.name: model for model in (OLMOE, MIXTRAL)}
