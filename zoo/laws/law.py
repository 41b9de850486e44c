"""What a law is: a function over a case that raises `LawBroken` with figures, and says when it applies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class LawBroken(AssertionError):
    """A part does not do what it declares; the message holds the figures."""


@dataclass(frozen=True)
class Law:
    """One law.

    name   "family.name"
    says   the law in one sentence
    takes  the class of cases it is about
    when   whether it applies to a case of that class (its declared properties promise it)
    check  raises LawBroken
    """

    name: str
    says: str
    takes: type
    when: Callable[[Any], bool]
    check: Callable[[Any], None]

    def applies(self, case: object) -> bool:
        """Whether the case promises this."""
        return isinstance(case, self.takes) and self.when(case)

    def __call__(self, case: object) -> None:
        self.check(case)


def always(case: object) -> bool:
    """For laws that every case promises."""
    return True


def law(says: str, takes: type, when: Callable[[Any], bool] = always) -> Callable[[Callable[[Any], None]], Law]:
    """Makes a function of a case a Law, named after its module and itself."""

    def make(check: Callable[[Any], None]) -> Law:
        family = check.__module__.rpartition(".")[2]
        return Law(f"{family}.{check.__name__}", says, takes, when, check)

    return make


def require(condition: bool | Tensor, message: str) -> None:
    """Raises LawBroken with the message where the condition is false."""
    if not bool(condition):
        raise LawBroken(message)


def close(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    """Raises LawBroken where two tensors differ by more than `tolerance` (absolute, relative to the largest value
    above 1); NaN equals NaN."""
    require(got.shape == expected.shape, f"{what}: shape {tuple(got.shape)} is not {tuple(expected.shape)}")
    if not got.numel():
        return
    got, expected = got.detach().double(), expected.detach().double()
    same_nan = torch.equal(got.isnan(), expected.isnan())
    require(same_nan, f"{what}: {int(got.isnan().sum())} NaN, expected {int(expected.isnan().sum())} in given places")
    difference = (got - expected).abs().nan_to_num(0)
    scale = max(1.0, float(expected.nan_to_num(0).abs().max()))
    worst = float(difference.max())
    if worst > tolerance * scale:
        place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        raise LawBroken(
            f"{what}: differs by {worst:.3g} at {place} (got {float(got[place]):.9g}, expected "
            f"{float(expected[place]):.9g}, tolerance {tolerance:.0e} x {scale:.3g})"
        )


def all_close(got: dict[str, Tensor], expected: dict[str, Tensor], what: str, tolerance: float = 1e-9) -> None:
    """`close` over named tensors; both must hold the same names."""
    require(got.keys() == expected.keys(), f"{what}: {sorted(got)} is not {sorted(expected)}")
    for name, value in got.items():
        close(value, expected[name], f"{what} {name}", tolerance)
