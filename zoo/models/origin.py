"""What a model remembers of the checkpoint it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Kept when the model is saved, so that it can be exported as what it was.

    family   the family of the public checkpoint, None for a model of ours
    fields   that checkpoint's config.json as it stood there
    folder   where the weights were read from; tokenizer files lie beside them
    """

    family: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def plain(self) -> dict[str, Any]:
        """As plain types, for a training checkpoint."""
        folder = None if self.folder is None else str(self.folder.absolute())
        return {"family": self.family, "fields": dict(self.fields), "folder": folder}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Origin:
        """What `plain` gave."""
        return cls(plain["family"], plain["fields"], None if plain["folder"] is None else Path(plain["folder"]))
