"""What a system promises, as it stands in an entry, and what was found when it was last checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Found:
    """The outcome of a claim's last recorded check.

    figure    what was measured
    expected  what the claim needs, in words
    holds     whether the figure meets it
    note      how it was measured, and the figures behind it
    command   the command that measured it
    commit    the commit it was measured at
    """

    figure: float
    expected: str
    holds: bool
    note: str = ""
    command: str = ""
    commit: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something the system promises.

    name    its short name
    says    the claim in a sentence
    check   the check that shows it, {type: a registered claim, ...its keys}, or null where there is none yet
    slow    whether the check takes more than some seconds; `zoo claims` runs it with --slow only
    found   what its last recorded check found; `zoo claims --record` writes it
    """

    name: str
    says: str
    check: dict[str, Any] | None = None
    slow: bool = False
    found: Found | None = None

    def __post_init__(self) -> None:
        if self.check is not None and not isinstance(self.check.get("type"), str):
            raise ValueError(f"check.type: missing in the check of {self.name!r}; `zoo show --schema claim` lists them")

    def line(self) -> str:
        """The claim with its last figure, on one line."""
        return f"{self.name}: {self.says}{self.verdict()}"

    def verdict(self) -> str:
        """ " [holds: 0.31, expected ...]", " [does NOT hold: ...]", or that nothing has been recorded."""
        if self.found is None:
            return "" if self.check is None else " [not measured yet]"
        word = "holds" if self.found.holds else "does NOT hold"
        return f" [{word}: {self.found.figure:.4g}, expected {self.found.expected}]"
