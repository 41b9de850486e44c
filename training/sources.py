"""Where a mixture's examples come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modalities.base import DataSpec, Raw
from zoo.spec import parse

if TYPE_CHECKING:
    from training.data import MixtureData


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One source of a mixture.

    data      a data set (`type:` and its keys), or a list of them, of which the first that is available is taken
    modality  the modality in the model that reads it; the source's own name where left out
    weight    share of the micro-batches, relative to the other sources
    rows      examples per micro-batch
    """

    data: dict[str, Any] | tuple[dict[str, Any], ...]
    modality: str | None = None
    weight: float = 1.0
    rows: int = 8

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight: got {self.weight}, expected more than 0 (leave the source out instead)")
        if self.rows < 1:
            raise ValueError(f"rows: got {self.rows}, expected 1 or more")
        if not self.data:
            raise ValueError("data: got nothing, expected a data set with a type, or a list of them")

    def choose(self, name: str) -> DataSpec:
        """The first data set of the list that is available.

        Raises ValueError naming the types that are not.
        """
        options = [self.data] if isinstance(self.data, Mapping) else list(self.data)
        specs = [parse(DataSpec, option, f"sources.{name}.data") for option in options]
        for spec in specs:
            if spec.available():
                return spec
        kinds = ", ".join(str(option.get("type")) for option in options)
        raise ValueError(
            f"sources.{name}.data: none of {kinds} is available here; set ZOO_DATA, or add an embedded one"
        )

    def raws(self, name: str, split: str) -> Sequence[Raw]:
        """Raw examples of a split. Raises ValueError where there are none."""
        examples = self.choose(name).build(split)
        if not len(examples):
            raise ValueError(f"sources.{name}: its {split} split is empty")
        return examples


def build_data(settings: Mapping[str, Any]) -> MixtureData:
    """The data module of a plain description: the keyword arguments of MixtureData, sources as mappings."""
    from training.data import MixtureData

    values = dict(settings)
    sources = {k: parse(SourceSpec, v, f"data.sources.{k}") for k, v in dict(values.pop("sources", {})).items()}
    return MixtureData(sources=sources, **values)
