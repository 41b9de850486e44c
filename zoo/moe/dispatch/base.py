"""The dispatch contract: `gather` rows to where the weights live, `combine` them back; apart, so work fits between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from zoo.moe.pool import Pool
from zoo.moe.routing import Routing, Rows


class Dispatch(Protocol):
    """Moves rows. Both calls may be asynchronous; what is returned is ready when it is used.

    local says that all experts are here, so that a kernel may do gather and combine itself.
    """

    local: bool

    def gather(self, x: Tensor, routing: Routing) -> Rows:
        """x [T, D] -> rows of the routed experts held here, sorted by expert; null and empty slots are left out."""

    def combine(self, out: Tensor, rows: Rows, tokens: int) -> Tensor:
        """Weighed rows [N, W] -> [tokens, W]: the sum over each token's rows, a new tensor that may be written over."""


@dataclass(frozen=True, kw_only=True)
class DispatchSpec:
    """The description of a dispatch; `type` names it."""

    kind: ClassVar[str] = "dispatch"

    def build(self, pool: Pool) -> Dispatch:
        """The dispatch for this pool."""
        raise NotImplementedError
