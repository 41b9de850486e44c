"""A language model's plain description in three parts: what conversions read and write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.spec import Plain


class MismatchError(ValueError):
    """A description that a family has no fields for; the message begins with the path of what does not fit."""


@dataclass(frozen=True)
class Language:
    """A trunk with one text modality.

    trunk    keys of the trunk but its layers
    blocks   each block by itself, in order
    text     keys of the text modality
    name     the modality's name
    """

    trunk: Plain
    blocks: tuple[Plain, ...]
    text: Plain
    name: str = "text"

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Language:
        """The parts of a model's plain description. Raises MismatchError where it is no language model."""
        if plain.get("type") != "unified":
            raise MismatchError(f"type: a {plain.get('type')!r} model is no language model")
        modalities = plain["modalities"]
        if len(modalities) != 1 or next(iter(modalities.values())).get("type") != "text":
            held = ", ".join(f"{name} ({part.get('type')})" for name, part in modalities.items())
            raise MismatchError(f"modalities: has {held}; expected one text modality alone")
        name, text = next(iter(modalities.items()))
        trunk = {key: value for key, value in plain["backbone"].items() if key != "layers"}
        groups = [(layers.get("repeat", 1), layers["block"]) for layers in plain["backbone"]["layers"]]
        blocks = tuple(block for repeat, block in groups for _ in range(repeat))
        return cls(trunk, blocks, {key: value for key, value in text.items() if key != "type"}, name)

    def plain(self) -> Plain:
        """The model's plain description; equal blocks in a row are one group."""
        groups: list[Plain] = []
        for block in self.blocks:
            if groups and groups[-1]["block"] == block:
                groups[-1]["repeat"] += 1
            else:
                groups.append({"repeat": 1, "block": block})
        backbone = {**self.trunk, "layers": groups}
        return {"type": "unified", "backbone": backbone, "modalities": {self.name: {"type": "text", **self.text}}}

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def dim(self) -> int:
        """The trunk's width."""
        return int(self.trunk["dim"])

    def same(self, part: str, of: Callable[[Plain], Any]) -> Any:
        """What `of` reads of every block, which has to be the same in all. Raises MismatchError naming the part."""
        values = [of(block) for block in self.blocks]
        for i, value in enumerate(values):
            if value != values[0]:
                raise MismatchError(f"{part}: differs between blocks 0 and {i}; expected the same in all")
        return values[0]


def of_type(plain: Any, part: str, expected: str) -> Plain:
    """A part's mapping, checked for its type. Raises MismatchError."""
    found = plain.get("type") if isinstance(plain, Mapping) else None
    if found != expected:
        raise MismatchError(f"{part}: is {found or plain!r}, expected {expected}")
    return dict(plain)
