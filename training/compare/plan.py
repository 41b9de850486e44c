"""The plan of a comparison: which cells there are, what was solved for, how long it will take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.claims import widths
from training.claims.counting import text_name
from training.claims.lab import bar, run, unified
from training.claims.widths import Solved
from training.compare.cells import Cell, Measurement, load, text_digest
from training.compare.config import CompareSpec, SystemSpec
from zoo.hub.card import count
from zoo.hub.entries import config_file, is_path, plain_spec
from zoo.models.unified import UnifiedSpec
from zoo.registry import nearest
from zoo.spec import Plain, SpecError, dump, override

PROBE = 4  # steps that are timed where nothing of a system has been measured yet


@dataclass(frozen=True)
class Planned:
    """A system with its cells, one per seed."""

    name: str
    solved: Solved
    spec: UnifiedSpec
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Plan:
    """A comparison, ready to run: systems in the order of the table, `target` the reference's operations per token."""

    spec: CompareSpec
    target: float
    systems: tuple[Planned, ...]

    @property
    def folder(self) -> Path:
        """Of the results."""
        return Path(self.spec.output)

    def cells(self, only: Sequence[str] = ()) -> list[Cell]:
        """The cells of all systems, or of those in `only`; seed by seed, so that a table of all is there early, and
        each file once. Raises ValueError for a name that is no system's."""
        names = [system.name for system in self.systems]
        for name in only:
            if name not in names:
                raise ValueError(f"--only: no system {name!r}{nearest(name, names)}; there are {', '.join(names)}")
        chosen = [system for system in self.systems if not only or system.name in only]
        rounds = [system.cells[i] for i in range(self.spec.seeds) for system in chosen]
        return list({cell.key: cell for cell in rounds}.values())

    def found(self, system: Planned) -> list[Measurement]:
        """What has been measured of a system so far."""
        return [found for cell in system.cells if (found := load(cell, self.folder)) is not None]


def make(spec: CompareSpec) -> Plan:
    """The plan. Raises SpecError or ValueError beginning with the system's place."""
    plains = {system.title: described(system) for system in spec.systems}
    reference = next(system for system in spec.systems if system.title == spec.reference)
    target = widths.count(plains[spec.reference], reference.active_k)
    text, systems = text_digest(spec.train), []
    for system in spec.systems:
        solved = settle(system, plains[system.title], spec, target)
        cells = tuple(Cell(system.title, seed, solved.plain, spec.train, text) for seed in range(spec.seeds))
        systems.append(Planned(system.title, solved, unified(solved.plain), cells))
    widths.same_text({system.name: system.spec for system in systems}, spec.reference)
    return Plan(spec, target, tuple(systems))


def described(system: SystemSpec) -> Plain:
    """A system's plain description, checked; errors begin with its name."""
    try:
        ref = config_file(system.spec) if isinstance(system.spec, str) and is_path(system.spec) else system.spec
        plain = override(plain_spec(ref), system.overrides)
        unified(plain)
    except (ValueError, LookupError, OSError) as error:
        raise SpecError(f"systems.{system.title}: {error}") from error
    return plain


def settle(system: SystemSpec, plain: Plain, spec: CompareSpec, target: float) -> Solved:
    """A system with its widths solved for; the reference, and one with nothing to solve for, as it is."""
    keys = spec.solve if system.solve is None else system.solve
    try:
        if system.title == spec.reference or not keys:
            return Solved(dump(unified(plain)), widths.count(plain, system.active_k), {})
        return widths.solve(plain, keys, target, tolerance=spec.tolerance, active_k=system.active_k)
    except ValueError as error:
        raise ValueError(f"systems.{system.title}: {error}") from error


def lines(plan: Plan, cells: Sequence[Cell], progress: bool = True) -> list[str]:
    """The plan as text, with the time those of `cells` that are not finished will take; systems that have not been
    measured are timed over a few steps, and one that fails there is said to."""
    wide = max(len(system.name) for system in plan.systems)
    out = [f"{'system':{wide}}  {'MFLOPs':>8} {'off':>6} {'total':>8}  {'done':>5} {'min/cell':>8}  solved"]
    todo = [cell for cell in cells if not cell.path(plan.folder).exists()]
    left = 0.0
    for system in plan.systems:
        found, own = plan.found(system), [cell for cell in todo if cell.system == system.name]
        try:
            minutes, failure = seconds(plan, system, found, progress) / 60 if found or own else 0.0, ""
        except Exception as error:  # whatever a system makes of its first steps
            minutes, failure = 0.0, f"; FAILS: {type(error).__name__}: {error}"
        left += minutes * len(own)
        off = system.solved.flops / plan.target - 1
        out.append(
            f"{system.name:{wide}}  {system.solved.flops / 1e6:8.3f} {off:+6.1%} {count(system.spec.cost().total):>8}  "
            f"{len(found):>2}/{len(system.cells):<2} {minutes:8.1f}  {system.solved.said()}{failure}"
        )
    workers = min(plan.spec.workers, max(len(todo), 1))
    out.append(f"{len(cells)} cells, {len(cells) - len(todo)} finished; {plan.spec.train}")
    out.append(f"about {math.ceil(left / workers)} minutes left with {workers} worker(s); results go to {plan.folder}")
    return out


def seconds(plan: Plan, system: Planned, found: Sequence[Measurement], progress: bool) -> float:
    """Estimated CPU seconds of one cell: training, and reading the held-out text, which costs a third per token."""
    train = plan.spec.train
    length = system.spec.modalities[text_name(system.spec)].length  # type: ignore[attr-defined]
    if found:
        speed = sum(m.speed for m in found) / len(found)
    else:
        steps = min(PROBE, train.steps)
        short = replace(train, steps=steps, warmup=0, decay=0, held_out=1)
        with bar(steps, progress, f"timing {system.name}") as tick:
            speed = run(system.solved.plain, short, tick=tick).speed
    return (train.steps * train.rows + train.held_out / 3) * length / speed
