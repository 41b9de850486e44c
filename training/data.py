"""A mixture of modalities as an endless stream of optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from modalities.base import Modality, Raw
from training.guard import Micro
from training.sampling import counts_before, picks, rows
from training.seeds import generator
from training.sources import SourceSpec
from zoo.registry import nearest


class MixtureData(L.LightningDataModule):
    """Draws optimiser steps [(modality, batch), ...] from several sources.

    What a step holds follows from (seed, step, rank, number of ranks) alone; the state that is saved is the number of
    steps that training has consumed, so a resumed run goes on with the next one, in the middle of an epoch too.
    """

    def __init__(
        self,
        sources: dict[str, SourceSpec],
        micro_batches: int = 1,
        eval_batches: int = 4,
        cache: int = 20000,
        seed: int = 0,
    ) -> None:
        """
        Args:
            sources: The mixture: a name for each source, and what it is.
            micro_batches: Micro-batches of an optimiser step on each rank; each comes from one source.
            eval_batches: Batches of each source in validation, test and predict, over all ranks.
            cache: Most examples kept in memory after their conversion to tensors.
            seed: Source of the order of examples and of random crops.
        """
        super().__init__()
        if not sources:
            raise ValueError("sources: got none, expected at least one")
        for key, value in (("micro_batches", micro_batches), ("eval_batches", eval_batches)):
            if value < 1:
                raise ValueError(f"{key}: got {value}, expected 1 or more")
        self.sources, self.micro_batches, self.eval_batches = dict(sources), micro_batches, eval_batches
        self.cache, self.seed, self.position = cache, seed, 0
        self._raws: dict[tuple[str, str], Sequence[Raw]] = {}
        self._examples: dict[tuple[str, str, int], dict[str, Tensor]] = {}

    @property
    def _module(self) -> Any:
        if self.trainer is None:
            raise RuntimeError("the data module is not attached to a trainer yet")
        return self.trainer.lightning_module

    @property
    def ranks(self) -> tuple[int, int]:
        """(this rank, number of ranks)."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def modality(self, source: str) -> tuple[str, Modality]:
        """Name and module of the modality that reads a source."""
        name = self.sources[source].modality or source
        return name, self._module.model.modality(name)

    def raws(self, source: str, split: str) -> Sequence[Raw]:
        """Raw examples of a source, opened once."""
        key = (source, split)
        if key not in self._raws:
            self._raws[key] = self.sources[source].raws(source, split)
        return self._raws[key]

    def setup(self, stage: str) -> None:
        """Checks names, and before training fits what is fitted and not trained (codec codebooks, statistics).

        All ranks fit on the same examples and get the same; what came with weights or a checkpoint is not fitted.
        """
        module = self._module
        for source, spec in self.sources.items():
            name, known = spec.modality or source, list(module.model.modalities)
            if name not in known:
                raise ValueError(
                    f"sources.{source}.modality: the model has no modality {name!r}{nearest(name, known)}; "
                    f"it has {', '.join(known)}"
                )
        if stage != "fit" or self.trainer is None or self.trainer.ckpt_path is not None:
            return
        for source in self.sources:
            name, modality = self.modality(source)
            if name not in module.fitted:
                raws = self.raws(source, "train")
                order = rows(self.seed, f"{source}/fit", len(raws), 0, len(raws))  # files are often sorted by label
                modality.fit(raws[i] for i in order)
                module.mark_fitted(name)

    def example(self, source: str, split: str, index: int) -> dict[str, Tensor]:
        """One example as tensors, from memory where it was used before."""
        key = (source, split, index)
        found = self._examples.get(key)
        if found is None:
            found = self.modality(source)[1].example(self.raws(source, split)[index])
            if len(self._examples) < self.cache:
                self._examples[key] = found
        return found

    def adopt(self, other: MixtureData, source: str) -> None:
        """Takes over the examples of a source that another data module prepared with an equal modality."""
        if source in other.sources and other.sources[source].data == self.sources[source].data:
            self._raws |= {key: raws for key, raws in other._raws.items() if key[0] == source}
            self._examples |= {key: example for key, example in other._examples.items() if key[0] == source}

    def batch(self, source: str, split: str, indices: Sequence[int], *place: int | str) -> Micro:
        """Examples of a source as one collated batch; crops are drawn for this place."""
        name, modality = self.modality(source)
        examples = [self.example(source, split, i) for i in indices]
        return name, modality.collate(examples, generator(self.seed, "collate", source, *place))

    def steps(self, start: int) -> Iterator[list[Micro]]:
        """This rank's part of the optimiser steps from `start` on, without end."""
        names, weights = list(self.sources), [s.weight for s in self.sources.values()]
        rank, world = self.ranks
        slots = self.micro_batches * world
        given = counts_before(self.seed, weights, start, slots)
        step = start
        while True:
            chosen = picks(self.seed, weights, np.array([step]), slots)[0]
            micros = []
            for slot, source in enumerate(map(int, chosen)):
                if slot % world == rank:
                    micros.append(self._take(names[source], int(given[source]), step, slot))
                given[source] += 1
            yield micros
            step += 1

    def _take(self, source: str, before: int, step: int, slot: int) -> Micro:
        """The micro-batch that comes after `before` others of its source."""
        count, size = self.sources[source].rows, len(self.raws(source, "train"))
        return self.batch(source, "train", list(rows(self.seed, source, size, before * count, count)), step, slot)

    def train_dataloader(self) -> Steps:
        """Optimiser steps from the saved position on."""
        return Steps(self)

    def val_dataloader(self) -> Fixed:
        """A fixed number of batches per source, the same ones every time."""
        return self._fixed("validation")

    def test_dataloader(self) -> Fixed:
        """As for validation, from the test split."""
        return self._fixed("test")

    def predict_dataloader(self) -> Fixed:
        """The batches of the test."""
        return self._fixed("test")

    def _fixed(self, split: str) -> Fixed:
        """Every rank gets equally many batches, so that none waits for another; few batches come round again."""
        rank, world = self.ranks
        batches, sources = [], []
        for source, spec in self.sources.items():
            size = len(self.raws(source, split))
            held = min(self.eval_batches, math.ceil(size / spec.rows))
            for i in range(math.ceil(held / world)):
                number = (i * world + rank) % held
                order = list(rows(self.seed, f"{source}/{split}", size, number * spec.rows, spec.rows))
                batches.append([self.batch(source, split, order[: size - number * spec.rows], split, number)])
                sources.append(source)
        return Fixed(batches, sources)

    def transfer_batch_to_device(self, batch: list[Micro], device: torch.device, dataloader_idx: int) -> list[Micro]:
        """Moves the tensors; nothing to do on the CPU."""
        if device.type == "cpu":
            return batch
        return [(name, {k: v.to(device, non_blocking=True) for k, v in b.items()}) for name, b in batch]

    def on_after_batch_transfer(self, batch: list[Micro], dataloader_idx: int) -> list[Micro]:
        """Called when training takes a step from the stream (which is read ahead): this is the position to save."""
        if self.trainer is not None and self.trainer.training:
            self.position += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """The number of optimiser steps consumed."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on after that many steps."""
        self.position = int(state_dict["position"])


class Steps(IterableDataset[list[Micro]]):
    """The stream as Lightning reads it. Its state lies in the data module, which knows what was really consumed."""

    def __init__(self, data: MixtureData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[list[Micro]]:
        return self.data.steps(self.data.position)

    def state_dict(self) -> dict[str, int]:
        """What the data module saves."""
        return self.data.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing: the data module has been restored already."""


class Fixed:
    """Held-out batches as Lightning reads them (it takes a plain list for several loaders)."""

    def __init__(self, batches: list[list[Micro]], sources: Sequence[str] | None = None) -> None:
        """`sources` names where each batch is from; its first modality where left out."""
        self.batches = batches
        self.sources = [batch[0][0] for batch in batches] if sources is None else list(sources)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Micro]]:
        return iter(self.batches)
