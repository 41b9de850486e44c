"""A tiny model of two modalities, steps for it, and a fit that keeps the gradients of every step; a tiny language
model, and an entry of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from zoo.hub.entries import Entry, read_entry

torch.set_num_threads(1)

WORDS = [
    "to be",
    "or not to be, that is",
    "the question",
    "whether it is nobler in the mind",
    "to suffer",
    "the slings",
]
SWITCH = {"type": "switch", "weight": 0.1}


def tiny_spec(balance: Sequence[dict[str, Any]] = (), **router: Any) -> dict[str, Any]:
    """Two MoE layers with a null expert; text and time series."""
    ffn = {
        "type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "null_experts": {"zero": 1},
        "router": {"type": "top_k", "k": 2, **router, "gate": {"init_std": 0.2, **router.get("gate", {})}},
        "balance": list(balance),
    }  # fmt: skip
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": ffn}
    return {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {
            "text": {"type": "text", "length": 12},
            "time_series": {"type": "time_series", "patch": 4, "context": 16, "heads": [4]},
        },
    }


def sources(**changes: Any) -> dict[str, Any]:
    """Embedded data for both modalities."""
    return {
        "text": {"data": {"type": "docstrings"}, "rows": 3, **changes},
        "series": {"modality": "time_series", "data": {"type": "el_nino"}, "rows": 2},
    }


def build_module(spec: dict[str, Any] | None = None, **settings: Any) -> Any:
    from training.module import UnifiedModule

    return UnifiedModule(spec or tiny_spec(), **{"schedule": "constant", "lr": 1e-2, **settings})


def build_steps(module: Any, parts: Sequence[tuple[str, Sequence[int]]]) -> list[Any]:
    """One optimiser step: (modality, rows of a fixed set of six rows of unequal length) per micro-batch."""
    examples = {
        "text": [{"text": text} for text in WORDS],
        "time_series": [{"series": torch.sin(torch.arange(14.0 + 2 * i) * (i + 1)).numpy()} for i in range(6)],
    }
    step = []
    for name, rows in parts:
        modality = module.model.modality(name)
        # a generator per row and not per batch, so that crops do not depend on how rows are cut into batches
        batches = [
            modality.collate([modality.example(examples[name][r])], torch.Generator().manual_seed(r)) for r in rows
        ]
        step.append((name, merge(batches)))
    return step


def merge(batches: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Batches of one row as one batch, padded at the end."""
    merged = {}
    for key in batches[0]:
        value = {"target": -100, "mask": False}.get(key, 0)
        longest = max(b[key].shape[1] for b in batches)
        rows = [torch.nn.functional.pad(b[key], (0, longest - b[key].shape[1]), value=value) for b in batches]
        merged[key] = torch.cat(rows)
    return merged


def keep_gradients(into: list[dict[str, torch.Tensor]]) -> Any:
    """A callback that appends the gradients of every step."""
    import lightning as L

    class Keep(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            named = pl_module.model.named_parameters()
            into.append({n: p.grad.clone() for n, p in named if p.grad is not None})

    return Keep()


def train(module: Any, steps: Sequence[Any], folder: Path, callbacks: Sequence[Any] = (), **settings: Any) -> Any:
    """A plain trainer over given steps; returns it."""
    import lightning as L

    from training.data import Fixed

    trainer = L.Trainer(
        default_root_dir=folder, max_steps=len(steps), max_epochs=1, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        **{"devices": 1, "logger": False, **settings},
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=Fixed(list(steps)))
    return trainer


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Any]:
    """The helpers above by name."""

    class Tiny:
        spec = staticmethod(tiny_spec)
        sources = staticmethod(sources)
        module = staticmethod(build_module)
        steps = staticmethod(build_steps)

        @staticmethod
        def gradients(module: Any, step: Any, **settings: Any) -> dict[str, torch.Tensor]:
            kept: list[dict[str, torch.Tensor]] = []
            train(module, [step], tmp_path, [keep_gradients(kept)], **settings)
            return kept[0]

        @staticmethod
        def train(module: Any, steps: Any, callbacks: Sequence[Any] = (), **settings: Any) -> Any:
            return train(module, steps, tmp_path, callbacks, **settings)

    yield Tiny


Helper = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny_parts() -> tuple[Helper, Helper]:
    """`tiny_spec` and `sources`, for fixtures that live longer than a test."""
    return tiny_spec, sources


FFN = {"type": "moe", "routed": 4, "experts": {"type": "swiglu", "hidden": 8}, "router": {"type": "top_k", "k": 2}}
TRAIN = {"steps": 3, "rows": 2, "held_out": 4, "points": 3, "data": [{"type": "docstrings"}]}


def tiny_lm(**ffn: Any) -> dict[str, Any]:
    """Two layers of width 16 over rows of 32 bytes; `ffn` is laid over its MoE layers."""
    block = {"type": "sequential", "attention": {"heads": 2}, "ffn": {**FFN, **ffn}}
    return {
        "type": "unified",
        "backbone": {"dim": 16, "layers": [{"repeat": 2, "block": block}]},
        "modalities": {"text": {"type": "text", "length": 32}},
    }


@pytest.fixture(scope="session")
def language() -> Callable[..., dict[str, Any]]:
    """`tiny_lm`."""
    return tiny_lm


@pytest.fixture(scope="session")
def budget() -> dict[str, Any]:
    """Three steps."""
    return dict(TRAIN)


@pytest.fixture
def entry(tmp_path: Path) -> Callable[..., Entry]:
    """Writes an entry of `tiny_lm` with these claims and reads it."""

    def write(*claims: dict[str, Any], **ffn: Any) -> Entry:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({"spec": tiny_lm(**ffn), "claims": list(claims)}, sort_keys=False))
        return read_entry(path)

    return write
