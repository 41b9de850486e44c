"""The pool of experts a router chooses from, and the properties a part declares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NullSpec:
    """Experts that compute (almost) nothing, in place, and are never dispatched (MoE++, arXiv 2410.07348).

    zero      number of experts that answer 0
    copy      number of experts that answer their input
    constant  number of experts that answer a1 x + a2 v, [a1, a2] = softmax(Wc x), v learned
    """

    zero: int = 0
    copy: int = 0
    constant: int = 0

    def __post_init__(self) -> None:
        for name in ("zero", "copy", "constant"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")

    @property
    def count(self) -> int:
        """All null experts."""
        return self.zero + self.copy + self.constant


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What a router's columns mean: `routed`, then null experts (zero, copy, constant), then `shared` columns
    where the router weighs the shared experts (else 0)."""

    routed: int
    null: NullSpec = NullSpec()
    shared: int = 0

    @property
    def experts(self) -> int:
        """E: routed and null experts, what a token can choose from."""
        return self.routed + self.null.count

    @property
    def columns(self) -> int:
        """E + Ns: the router's outputs."""
        return self.experts + self.shared

    def first(self, kind: Literal["routed", "zero", "copy", "constant"]) -> int:
        """The id of the first expert of a kind (equal to the next kind's where there is none)."""
        n = self.null
        return {"routed": 0, "zero": self.routed, "copy": self.routed + n.zero}.get(kind, self.experts - n.constant)


@dataclass(frozen=True, kw_only=True)
class Properties:
    """What a part promises; the laws check exactly this.

    scope          what one token's result depends on: itself, its sequence, or the whole batch
    causal         whether the future never matters
    task_gradient  how the task loss reaches the router: exact, partial (not for all tokens), estimator, none
    noise          whether training draws random numbers
    fixed_k        whether every real token fills the same number of slots
    inference      whether it acts outside training only
    """

    scope: Literal["token", "sequence", "batch"] = "token"
    causal: bool = True
    task_gradient: Literal["exact", "partial", "estimator", "none"] = "exact"
    noise: bool = False
    fixed_k: bool = True
    inference: bool = False


def weakest(first: Properties, *others: Properties) -> Properties:
    """What parts promise together."""
    scopes, gradients = ("token", "sequence", "batch"), ("exact", "partial", "estimator", "none")
    result = first
    for other in others:
        result = replace(
            result,
            scope=max(result.scope, other.scope, key=scopes.index),
            causal=result.causal and other.causal,
            task_gradient=max(result.task_gradient, other.task_gradient, key=gradients.index),
            noise=result.noise or other.noise,
            fixed_k=result.fixed_k and other.fixed_k,
            inference=result.inference or other.inference,
        )
    return result
