"""The shapes that are measured, and the figures the project wants to reach at each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["forward", "train", "memory", "same experts", "random experts"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """`ratio` to `base` shall be at most `limit`; base is the key of a ratio column of a table."""

    base: str
    limit: float


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One layer and one batch. The dense yardstick has width k * hidden: the same active FLOPs.

    modes    what is measured: forward, train (forward + backward), memory (its peak), same/random experts (decoding)
    targets  per mode; they hold for float32 on one CPU thread, or for bfloat16 on a GPU where device says so
    """

    name: str
    experts: int
    k: int
    dim: int
    hidden: int
    tokens: int
    modes: tuple[Mode, ...] = ("forward", "train", "memory")
    targets: tuple[tuple[Mode, Target], ...] = ()
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def title(self) -> str:
        """The shape in words."""
        size = f"{self.experts} experts, top-{self.k}, D {self.dim}, F {self.hidden}"
        return f"{self.name}: {size}, {self.tokens} token{'s' * (self.tokens != 1)}"

    @property
    def flops(self) -> float:
        """Of the active experts in one forward pass: three products per slot, two operations per multiply-add."""
        return 6.0 * self.tokens * self.k * self.dim * self.hidden

    def weight_bytes(self, itemsize: int) -> float:
        """Of the experts that an even routing touches."""
        touched = self.experts * (1 - (1 - self.k / self.experts) ** self.tokens)
        return 3.0 * touched * self.dim * self.hidden * itemsize

    def token_bytes(self, itemsize: int) -> float:
        """Input read and output written once."""
        return 2.0 * self.tokens * self.dim * itemsize


def _targets(forward: float, train: float) -> tuple[tuple[Mode, Target], ...]:
    """Against the dense yardstick; nowhere slower than transformers' best, and 0.7 of grouped_mm's memory."""
    best = Target(base="transformers' best", limit=1.0)
    return (
        ("forward", Target(base="dense", limit=forward)),
        ("forward", best),
        ("train", Target(base="dense", limit=train)),
        ("train", best),
        ("memory", Target(base="grouped_mm", limit=0.7)),
    )


_DECODE: tuple[Mode, ...] = ("same experts", "random experts")

SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="fine", experts=64, k=8, dim=512, hidden=256, tokens=2048, targets=_targets(1.30, 1.40)),
        Shape(name="wide", experts=64, k=8, dim=1024, hidden=512, tokens=1024, targets=_targets(1.40, 1.50)),
        Shape(name="coarse", experts=8, k=2, dim=512, hidden=1792, tokens=2048, targets=_targets(1.10, 1.15)),
        Shape(
            name="decode1", experts=64, k=8, dim=512, hidden=256, tokens=1, modes=_DECODE,
            targets=(
                ("same experts", Target(base="dense", limit=1.5)),
                ("same experts", Target(base="transformers' best", limit=1.0)),
                ("random experts", Target(base="transformers' best", limit=1.0)),
            ),
        ),
        Shape(
            name="decode16", experts=64, k=8, dim=512, hidden=256, tokens=16, modes=_DECODE,
            targets=tuple((mode, Target(base="transformers' best", limit=0.6)) for mode in _DECODE),
        ),
        Shape(
            name="mixtral", experts=8, k=2, dim=4096, hidden=14336, tokens=8192, device="cuda",
            targets=_targets(1 / 0.75, 1 / 0.65),
        ),
        Shape(
            name="deepseek", experts=64, k=8, dim=2048, hidden=1408, tokens=8192, device="cuda",
            targets=_targets(1 / 0.55, 1 / 0.45),
        ),
    )
}  # fmt: skip

# Null experts: the same layer with 0, a quarter and half of every token's slots on zero experts.
NULL_SHAPE = SHAPES["fine"]
NULL_SHARES = (0.0, 0.25, 0.5)
NULL_LIMIT = 0.62

# Many experts: the number of experts grows, k * hidden stays. The 8 coarse experts are the strict reading of "8";
# 8 experts that all tokens use differ from the 256 by nothing but their number.
EXPERT_SHAPES = tuple(
    Shape(name=f"{experts} x {hidden}", experts=experts, k=k, dim=512, hidden=hidden, tokens=2048)
    for experts, k, hidden in ((8, 2, 1024), (8, 8, 256), (64, 8, 256), (256, 8, 256))
)
EXPERT_LIMIT = 1.5

STUDIES = ("null", "experts")


def tiny(shape: Shape) -> Shape:
    """The shape at a size that takes milliseconds: a check of the benchmark, not of the layer."""
    size = {"experts": min(shape.experts, 16), "k": min(shape.k, 4), "dim": 16, "hidden": 8}
    return Shape(
        name=shape.name, tokens=min(shape.tokens, 32), modes=shape.modes, targets=shape.targets, device=shape.device,
        **size,
    )  # fmt: skip
