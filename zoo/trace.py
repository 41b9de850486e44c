"""Tracing: which tokens went to which experts, as arrays."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from zoo.moe.record import LayerRecord


@dataclass(frozen=True)
class LayerTrace:
    """One MoE layer in one forward pass over T = B * S tokens, which stand once for each map where the layer is an
    adapter's.

    forward   number of the pass, from 0
    layer     number of the MoE layer, from 0
    expert    [T, K] int64 chosen expert per slot in order of choice, E in an empty slot
    gate      [T, K] float32 weight of the slot
    modality  [T] int64 index into `Trace.names`
    mask      [T] bool, False on padding
    load      [E] int64 slots that chose each expert, before policies
    """

    forward: int
    layer: int
    expert: np.ndarray
    gate: np.ndarray
    modality: np.ndarray
    mask: np.ndarray
    load: np.ndarray

    @property
    def count(self) -> np.ndarray:
        """[T] int64 slots that each token fills; 0 on padding."""
        return ((self.expert < len(self.load)) & self.mask[:, None]).sum(axis=1)


@dataclass
class Trace:
    """The routing of every forward pass inside `with zoo.trace(model) as trace:`.

    names   modalities, in the order of their indices
    null    null experts at the end of each layer's pool (the most of any layer)
    layers  what was seen, pass by pass and layer by layer
    """

    names: tuple[str, ...]
    null: int = 0
    layers: list[LayerTrace] = field(default_factory=list)
    forwards: int = 0

    def add(self, records: tuple[LayerRecord, ...]) -> None:
        """Takes the records of one forward pass."""
        self.layers += [_read(self.forwards, i, record) for i, record in enumerate(records)]
        self.forwards += 1

    def load(self, by: Literal["modality", "all"] = "modality") -> dict[str, np.ndarray]:
        """Filled slots per expert, [layers, E] int64, for each modality that was seen, or under the one key "all".

        Counted after policies, so dropped slots are not in it; E is the widest layer's, narrower ones end in zeros.
        """
        import numpy as np

        if by not in ("modality", "all"):
            raise ValueError(f"by: got {by!r}, expected 'modality' or 'all'")
        depth = 1 + max((t.layer for t in self.layers), default=-1)
        width = max((len(t.load) for t in self.layers), default=0)
        loads: dict[str, np.ndarray] = {}
        for t in self.layers:
            for index in np.unique(t.modality[t.mask]):
                name = self.names[index] if by == "modality" else "all"
                table = loads.setdefault(name, np.zeros((depth, width), dtype=np.int64))
                chosen = t.expert[t.mask & (t.modality == index)]
                table[t.layer] += np.bincount(chosen.ravel(), minlength=width + 1)[:width]
        order = ("all", *self.names)
        return {name: loads[name] for name in order if name in loads}

    def mean_k(self, by: Literal["modality", "all"] = "modality") -> dict[str, np.ndarray]:
        """Filled slots per token, [layers] float64, by modality or under "all"; as `load` counts them, NaN where no
        token of a modality was."""
        import numpy as np

        found: dict[str, np.ndarray] = {}
        for name, load in self.load(by).items():
            tokens = np.zeros(len(load))
            for t in self.layers:
                tokens[t.layer] += (t.mask & self._of(t, name)).sum()
            with np.errstate(invalid="ignore"):
                found[name] = load.sum(axis=1) / tokens
        return found

    def _of(self, t: LayerTrace, name: str) -> np.ndarray:
        """[T] bool: tokens of a modality; all of them for "all"."""
        return t.modality == self.names.index(name) if name in self.names else t.modality >= 0

    def to_csv(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """A line per token and filled slot: forward, layer, token, modality, slot, expert, gate. Written beside, then
        renamed. Raises FileExistsError where the file is there already and `overwrite` is off."""
        path = Path(path).expanduser()
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path}: already exists; choose another file, or overwrite it (--overwrite)")
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with beside.open("w", newline="", encoding="utf-8") as handle:
                writer = csv.writer(handle)
                writer.writerow(["forward", "layer", "token", "modality", "slot", "expert", "gate"])
                writer.writerows(self._rows())
            return beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        for t in self.layers:
            full = (t.expert < len(t.load)) & t.mask[:, None]
            for token, slot in zip(*full.nonzero(), strict=True):
                name = self.names[t.modality[token]]
                weight = f"{t.gate[token, slot]:.6g}"
                yield t.forward, t.layer, token, name, slot, t.expert[token, slot], weight


def _read(forward: int, layer: int, record: LayerRecord) -> LayerTrace:
    routing, modality = record.routing, record.modality
    expert = routing.expert.detach().cpu().numpy().copy()
    index = routing.mask.new_zeros(len(expert), dtype=routing.expert.dtype) if modality is None else modality
    return LayerTrace(
        forward=forward,
        layer=layer,
        expert=expert,
        gate=routing.gate.detach().float().cpu().numpy().copy(),
        modality=index.cpu().numpy().copy(),
        mask=routing.mask.cpu().numpy().copy(),
        load=record.stats.load.cpu().numpy().copy(),
    )


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Collects the routing of every forward pass of the model's trunk inside the block.

    It reads what the MoE layers return and changes nothing; recomputed activations are not seen twice. Everything read
    is copied to the CPU.
    Raises ValueError where the model has no MoE layer.
    """
    from zoo.backbone.trunk import Backbone

    trunks = [module for module in model.modules() if isinstance(module, Backbone)]
    layers = [layer for trunk in trunks for layer in trunk.moe_layers()]
    if not layers:
        raise ValueError(f"this {type(model).__name__} has no MoE layer, so there is no routing to trace")
    names = getattr(model, "modalities", None)
    found = Trace(tuple(names) if names is not None else ("tokens",), max(layer.pool.null.count for layer in layers))
    hooks = [trunk.register_forward_hook(lambda _, __, out: found.add(out.records)) for trunk in trunks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
