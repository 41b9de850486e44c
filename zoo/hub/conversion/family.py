"""What a family of public checkpoints is: a table from its fields to our description, and from its tensors to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.hub.config import REMOTE
from zoo.hub.conversion import quantised
from zoo.hub.conversion.fields import Fields
from zoo.hub.conversion.harmless import HARMLESS, OFF
from zoo.hub.conversion.language import Language
from zoo.hub.conversion.pieces import Piece
from zoo.spec import Plain, SpecError

SEPARATE, FUSED = "separate", "fused"  # experts one by one, or stacked in one tensor per layer
IGNORED = (r".*\.rotary_emb\.inv_freq", r".*\.(masked_bias|attn\.bias)")  # buffers that old releases saved


@dataclass(frozen=True, kw_only=True)
class Family:
    """A table; `zoo.hub.families` says how to write one.

    name          `model_type` in config.json
    architecture  the class that the other libraries look up
    spec          fields -> language model; reads every field it honours and refuses what it cannot express
    config        language model (every default written out) -> fields; raises MismatchError for what it cannot express
    rules         language model, layout -> every tensor of that layout
    layouts       layouts the checkpoints come in, what export writes first
    harmless      fields without influence beyond those that are harmless everywhere
    ignored       patterns of surplus tensors that are left unread
    unread        fields, language model -> further such patterns, where they depend on numbers
    quantised     ways of storing weights with scales that are read as plain weights
    """

    name: str
    architecture: str
    spec: Callable[[Fields], Language]
    config: Callable[[Language], Plain]
    rules: Callable[[Language, str], Iterable[Piece]]
    layouts: tuple[str, ...] = (SEPARATE,)
    harmless: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    unread: Callable[[Mapping[str, Any], Language], tuple[str, ...]] | None = None
    quantised: tuple[str, ...] = ("fp8",)

    def read(self, content: Mapping[str, Any], where: str) -> tuple[Language, Plain]:
        """A config.json as a language model, and the harmless fields that were left out of it.

        Raises SpecError naming the field: of another kind or value than supported, missing, or not honoured.
        """
        fields = Fields(content, where)
        for name in REMOTE:
            if content.get(name):
                raise fields.error(
                    name,
                    "names code to run, and code that comes with a checkpoint is never run; ignore_remote_code=True "
                    f"(--ignore-remote-code) reads it without that code, as the {self.name} of this library",
                )
        self._check_architecture(fields)
        for name, allowed in OFF.items():
            fields.only(name, *allowed)
        quantised.method(fields, self.quantised)
        language = self.spec(fields)
        return language, fields.finish(HARMLESS | self.harmless)

    def surplus(self, content: Mapping[str, Any], model: Language) -> re.Pattern[str]:
        """Names of tensors that a checkpoint with these fields may have beyond the model, and that are left unread."""
        more = () if self.unread is None else self.unread(content, model)
        return re.compile("|".join(f"(?:{pattern})" for pattern in (*IGNORED, *self.ignored, *more)))

    def _check_architecture(self, fields: Fields) -> None:
        named = fields.get("architectures", list, [])
        # publishers and transformers do not always agree on capitals (PhiMoE, Phimoe)
        if named and self.architecture.lower() not in [str(name).lower() for name in named]:
            raise fields.error("architectures", f"got {named}, supported is {self.architecture}")


def supported(content: Mapping[str, Any], where: str) -> Family:
    """The family that config.json names. Raises SpecError with the near miss and all that are supported."""
    from zoo.hub.families import NAMES, family
    from zoo.registry import nearest

    name = content.get("model_type")
    if name not in NAMES:
        listed = ", ".join(sorted(NAMES))
        raise SpecError(
            f"{where}: model_type: {name!r} is not supported{nearest(str(name), list(NAMES))}; supported are {listed}"
        )
    return family(str(name))
