"""Runs laws over cases and prints what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from zoo import registry
from zoo.laws import (
    accumulation,
    backends,
    balance,
    batch,
    causality,
    compile,
    contract,
    edges,
    gradient,
    noise,
    padding,
    recompute,
    surgery,
    weights,
    world,
)
from zoo.laws.cases import Case, Refused
from zoo.laws.catalogue import gather
from zoo.laws.law import Law, LawBroken

FAMILIES = (
    contract, padding, batch, causality, accumulation, world, balance, weights, gradient, recompute, compile, backends,
    noise, edges, surgery,
)  # fmt: skip
LAWS: tuple[Law, ...] = tuple(law for family in FAMILIES for law in vars(family).values() if isinstance(law, Law))

Outcome = Literal["held", "broken", "error", "refused"]


@dataclass(frozen=True)
class Result:
    """What came of one law over one case; for a refused combination, law is "spec" and detail the reason."""

    law: str
    case: str
    outcome: Outcome
    detail: str = ""


def judge(law: Law, case: Case) -> Result:
    """One law over one case it applies to."""
    try:
        law(case)
    except LawBroken as error:
        return Result(law.name, case.name, "broken", str(error))
    except Exception as error:
        return Result(law.name, case.name, "error", f"{type(error).__name__}: {error}")
    return Result(law.name, case.name, "held")


def run(part: str | None = None, cases: Iterable[Case] | None = None) -> list[Result]:
    """Every law over every case it applies to; only cases about one part, by its type, where `part` is given.

    Cases come from the registry as it stands, plug-ins included, unless they are given. Raises RegistryError for an
    unknown part, with the near miss.
    """
    if part is not None:
        _known(part)
    results = []
    for case in gather() if cases is None else cases:
        if part is not None and part not in case.about:
            continue
        if isinstance(case, Refused):
            results.append(Result("spec", case.name, "refused", case.reason))
            continue
        results += [judge(law, case) for law in LAWS if law.applies(case)]
    return results


def _known(part: str) -> None:
    layer = ("router", "gate", "policy", "expert", "balance", "dispatch", "ffn")
    kinds = (*layer, "attention", "rope_scaling", "block", "adapter", "surgery")
    choices = [name for kind in kinds for name in registry.names(kind)]
    if part not in choices:
        near = registry.nearest(part, choices)
        raise registry.RegistryError(f"no part {part!r}{near}; laws are about {', '.join(choices)}")


def report(results: Sequence[Result]) -> str:
    """A table with one line per law, then what broke with its figures, then what was refused and why."""
    counts = Counter((r.law, r.outcome) for r in results)
    names = [law.name for law in LAWS if any((law.name, o) in counts for o in ("held", "broken", "error"))]
    width = max([len(n) for n in names] + [4])
    lines = [f"{'law':<{width}}  held  broken"]
    for name in names:
        broken = counts[name, "broken"] + counts[name, "error"]
        lines.append(f"{name:<{width}}  {counts[name, 'held']:>4}  {broken or '-':>6}")
    for title, outcomes in (("broken", ("broken", "error")), ("refused", ("refused",))):
        found = [r for r in results if r.outcome in outcomes]
        lines += ["", f"{title}: {len(found)}"] if found else []
        lines += [f"  {r.law:<{width}}  {r.case}\n      {r.detail}" for r in found]
    held = sum(r.outcome == "held" for r in results)
    total = sum(r.outcome != "refused" for r in results)
    return "\n".join([*lines, "", f"{held} of {total} checks held over {len({r.case for r in results})} cases"])


def listing() -> str:
    """Every law and what it says."""
    width = max(len(law.name) for law in LAWS)
    return "\n".join(f"{law.name:<{width}}  {law.says}" for law in LAWS)
