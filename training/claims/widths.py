"""Systems of equal active operations: widths found by search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.claims import counting
from training.claims.lab import unified
from zoo.models.unified import UnifiedSpec
from zoo.spec import Plain, SpecError, dump, override

GRAINS = (16, 8, 4, 2, 1)  # round widths are faster, so the coarsest grain that is exact enough is taken
WIDEST = 1 << 20


@dataclass(frozen=True)
class Solved:
    """A system whose active operations are settled.

    plain   the whole description, every default written out
    flops   operations of the forward pass for one token
    widths  key (dotted path) -> (value before, value now) of what was solved for
    """

    plain: Plain
    flops: float
    widths: Mapping[str, tuple[int, int]]

    def said(self) -> str:
        """ "experts.hidden 176 -> 152", the same for several layer groups said once; "as given" without."""
        parts = (f"{'.'.join(path.split('.')[-2:])} {a} -> {b}" for path, (a, b) in self.widths.items())
        return ", ".join(dict.fromkeys(parts)) or "as given"


def count(plain: Plain, active_k: float | None = None) -> float:
    """Active operations per token of a plain description; `active_k` as in SystemSpec."""
    return counting.flops(unified(plain), active_k)


def solve(
    plain: Plain, keys: Sequence[str], target: float, *, tolerance: float, active_k: float | None = None
) -> Solved:
    """The description with the whole numbers behind `keys` scaled so that its active operations are `target`.

    Raises ValueError where no key is found, or none of the widths comes within the tolerance; SpecError where the
    description itself is wrong.
    """
    whole: Plain = dump(unified(plain))
    before = dict(places(whole["backbone"], keys, "backbone"))
    if not before:
        raise ValueError(f"solve: no key ends in {' or '.join(keys)}; name others, or [] to leave it as it is")
    found: Solved | None = None
    for grain in GRAINS:
        try:
            found = nearest(whole, before, target, grain, active_k)
        except SpecError:  # some parts take only certain widths; another grain may meet them
            continue
        if abs(found.flops / target - 1) <= tolerance:
            return found
    if found is None:
        raise ValueError(f"solve: the system takes no other values of {', '.join(before)} than its own")
    raise ValueError(
        f"solve: {found.said()} comes nearest to the reference, with {found.flops / 1e6:.4g} MFLOPs per token in place "
        f"of {target / 1e6:.4g} ({found.flops / target - 1:+.1%}, tolerance {tolerance:.1%}); give other keys, or []"
    )


def nearest(whole: Plain, before: Mapping[str, int], target: float, grain: int, active_k: float | None) -> Solved:
    """The nearest to the target, the first width being a multiple of `grain` and the others in proportion."""

    def at(step: int) -> Solved:
        first = next(iter(before.values()))
        after = {path: max(round(value * step * grain / first), 1) for path, value in before.items()}
        plain = override(whole, after)
        return Solved(plain, count(plain, active_k), {path: (before[path], after[path]) for path in before})

    low, high = 1, 2
    while at(high).flops < target and high * grain < WIDEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).flops < target else (low, middle)
    return min((at(low), at(high)), key=lambda s: abs(s.flops - target))


def places(node: Any, keys: Sequence[str], path: str) -> Iterator[tuple[str, int]]:
    """(dotted path, value) of every whole number whose path ends in one of the keys."""
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(node, Mapping):
        items = iter(node.items())
    elif isinstance(node, (list, tuple)):
        items = iter(enumerate(node))
    for key, value in items:
        inner = f"{path}.{key}"
        if isinstance(value, int) and not isinstance(value, bool):
            if any(inner.endswith(f".{end}") for end in keys):
                yield inner, value
        else:
            yield from places(value, keys, inner)


def same_text(systems: Mapping[str, UnifiedSpec], reference: str) -> None:
    """Raises ValueError naming a system that reads text in other windows or tokens than the reference."""
    read = {name: _reads(spec) for name, spec in systems.items()}
    for name, (length, tokenizer) in read.items():
        if (length, tokenizer) != read[reference]:
            raise ValueError(
                f"systems.{name}: reads windows of {length} with {tokenizer}, but {reference} reads "
                f"{read[reference][0]} with {read[reference][1]}; make them equal"
            )


def _reads(spec: UnifiedSpec) -> tuple[int, Any]:
    text: Any = spec.modalities[counting.text_name(spec)]
    return text.length, text.tokenizer
