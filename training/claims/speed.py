"""What rows that no expert computes are worth: the time of MoE layers beside those of another system."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from modalities.base import Batch
from modalities.text.evaluate import windows
from training.claims.base import TrainedClaim, reference
from training.claims.counting import text_name
from training.claims.lab import Outcome, one_thread
from zoo.claims import Finding
from zoo.hub.entries import Entry
from zoo.models.unified import Unified
from zoo.spec import override


@dataclass(frozen=True, kw_only=True)
class LayersFasterSpec(TrainedClaim):
    """The MoE layers take less time than those of a baseline: a training step (forward and backward) over the same
    held-out windows, thread CPU time, in turns; the median of the ratios.

    baseline    an entry, a file or a description; null for the entry's own
    overrides   values of the baseline's description to exchange, by dotted path
    at_least    least gain: the baseline's time over the own
    of_promise  least gain as a part of what the skipped rows promise: the baseline's routed experts per token over the
                own; 0 to look at `at_least` alone
    rounds      turns
    rows        windows of a turn
    """

    baseline: str | dict[str, Any] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    at_least: float = 1.0
    of_promise: float = 0.0
    rounds: int = 9
    rows: int = 16

    def __post_init__(self) -> None:
        if self.baseline is None and not self.overrides:
            raise ValueError("baseline: got neither a baseline nor overrides, so there is nothing to compare with")
        for name in ("rounds", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        own = self.described(entry)
        other = override(own if self.baseline is None else reference(entry, self.baseline), self.overrides)
        pair = [self.outcome(plain, seed, progress) for plain in (other, own)]
        with one_thread():
            batches = [self._batch(outcome) for outcome in pair]
            turns = [[seconds(o.model, b) for o, b in zip(pair, batches, strict=True)] for _ in range(self.rounds + 1)]
        gain = statistics.median(before / after for before, after in turns[1:])  # the first turn loads kernels
        used = [sum(layer.routed_k for layer in outcome.measured.layers) for outcome in pair]
        promise = used[0] / max(used[1], 1e-9)
        needed = max(self.at_least, self.of_promise * promise)
        own_time = statistics.median(after for _, after in turns[1:])
        note = f"the routed rows promise {promise:.3f}; own layers {1e3 * own_time:.1f} ms"
        return Finding(gain, f"at least {needed:.3f} times as fast", gain >= needed, note)

    def _batch(self, outcome: Outcome) -> Batch:
        name = text_name(outcome.model.spec)
        text: Any = outcome.model.modality(name)
        held = windows(text, self.train.source().raws(name, "test"), self.rows)
        batch: Batch = text.batch([torch.tensor(window.ids) for window in held])
        return batch


def seconds(model: Unified, batch: Batch) -> float:
    """Thread CPU time of one forward and backward pass through the MoE layers alone, each fed what it gets in the
    model. Raises ValueError where a block calls pieces of a layer and not the layer."""
    fed: list[tuple[Any, ...]] = []
    name = text_name(model.spec)
    with kept(model, fed), torch.no_grad():
        model(name, batch)
    spent = 0.0
    if len(fed) != len(model.moe_layers()):
        raise ValueError("layers_faster: a block drives its MoE layer in pieces, which cannot be timed apart")
    for layer, (x, *rest) in zip(model.moe_layers(), fed, strict=True):
        given = x.detach().requires_grad_()
        begun = time.thread_time()
        layer(given, *rest).y.sum().backward()
        spent += time.thread_time() - begun
        layer.zero_grad(set_to_none=True)
    return spent


@contextmanager
def kept(model: Unified, into: list[tuple[Any, ...]]) -> Iterator[None]:
    """Inside, what each MoE layer is called with is kept."""

    def keep(module: Any, args: tuple[Any, ...]) -> None:
        into.append(args)

    hooks = [layer.register_forward_pre_hook(keep) for layer in model.moe_layers()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
