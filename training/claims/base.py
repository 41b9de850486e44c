"""What checks that train have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from training.claims import lab
from training.claims.budget import Budget
from training.claims.lab import Outcome
from zoo.claims import ClaimSpec, Finding
from zoo.hub.entries import Entry, plain_spec
from zoo.spec import Plain, override

__all__ = ["ClaimSpec", "Finding", "TrainedClaim", "reference"]


@dataclass(frozen=True, kw_only=True)
class TrainedClaim(ClaimSpec):
    """A check on the entry's system after a short training.

    change  values of the entry's description to exchange first, by dotted path
    train   how it is trained and measured
    """

    change: dict[str, Any] = field(default_factory=dict)
    train: Budget = field(default_factory=Budget)

    def check(self, entry: Entry, *, seed: int = 0, progress: bool = True) -> Finding:
        """What `look` finds, with the training behind it in the note."""
        found = self.look(entry, seed, progress)
        return replace(found, note="; ".join(filter(None, [found.note, str(self.train)])))

    def look(self, entry: Entry, seed: int, progress: bool) -> Finding:
        """Trains and measures; what a check of this kind implements."""
        raise NotImplementedError

    def described(self, entry: Entry, more: Mapping[str, Any] | None = None) -> Plain:
        """The entry's description with `change` and `more` in it."""
        return override(override(entry.spec, self.change), more or {})

    def outcome(self, plain: Plain, seed: int, progress: bool) -> Outcome:
        """A description trained and measured; the last few are remembered."""
        return lab.kept_run(plain, self.train, seed=seed, progress=progress)


def reference(entry: Entry, ref: str | Mapping[str, Any]) -> Plain:
    """The description behind an entry's name, a file (beside the entry's own where it is there) or a mapping."""
    if isinstance(ref, str):
        beside = entry.path.parent / ref
        return plain_spec(beside if beside.is_file() else ref)
    return plain_spec(ref)
