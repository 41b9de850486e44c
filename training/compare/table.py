"""The table of a comparison, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from training.claims.figures import mean
from training.claims.losses import difference
from training.claims.widths import Solved
from training.compare.cells import Measurement
from training.compare.plan import Plan
from zoo.hub.card import count


@dataclass(frozen=True)
class Row:
    """One system, means over its seeds; nan where there is no such figure.

    loss, deviation   held-out loss in nats per byte, its standard deviation over seeds
    gap               loss minus the reference's, same seeds and windows; negative is better
    gap_deviation     standard deviation of the gap over seeds; gap_error its standard error over held-out windows
    total, active     parameters, as the description counts them
    flops, used       operations per token: as they were made equal, and with the experts really used
    speed             tokens trained per second of one thread's CPU time
    null_share        share of the filled slots with a null expert; mean_k filled slots per token
    load_ratio        greatest over mean load of the routed experts, worst layer
    dead              routed experts, over all layers, with less than 1 % of the even share
    """

    system: str
    seeds: int
    loss: float
    deviation: float
    gap: float
    gap_deviation: float
    gap_error: float
    total: int
    active: float
    flops: float
    used: float
    speed: float
    null_share: float
    mean_k: float
    load_ratio: float
    dead: float
    solved: str


def rows(plan: Plan) -> list[Row]:
    """A row for every system of which at least one cell is finished."""
    found = {system.name: plan.found(system) for system in plan.systems}
    reference = found[plan.spec.reference]
    return [row(found[s.name], reference, s.solved) for s in plan.systems if found[s.name]]


def row(cells: Sequence[Measurement], reference: Sequence[Measurement], solved: Solved) -> Row:
    """One system's figures from its finished cells and those of the reference."""
    first, losses = cells[0], [cell.loss for cell in cells]
    by_seed = {cell.seed: cell for cell in reference}
    pairs = [(cell, by_seed[cell.seed]) for cell in cells if cell.seed in by_seed]
    gap = gap_deviation = gap_error = math.nan
    if pairs:
        own, other = ([np.asarray(cell.losses) for cell in side] for side in zip(*pairs, strict=True))
        found = difference(own, other, np.asarray(first.counts))
        gap, gap_deviation, gap_error = found.mean, found.deviation, found.error
    return Row(
        system=first.system,
        seeds=len(cells),
        loss=float(np.mean(losses)),
        deviation=float(np.std(losses, ddof=1)) if len(cells) > 1 else math.nan,
        gap=gap,
        gap_deviation=gap_deviation,
        gap_error=gap_error,
        total=first.total,
        active=first.active,
        flops=solved.flops,
        used=average(cells, lambda c: c.used),
        speed=average(cells, lambda c: c.speed),
        null_share=average(cells, lambda c: mean(c.layers, lambda x: sum(x.load[x.routed :]), lambda x: sum(x.load))),
        mean_k=average(cells, lambda c: mean(c.layers, lambda x: sum(x.load), lambda x: x.tokens)),
        load_ratio=average(cells, lambda c: max((x.ratio for x in c.layers), default=math.nan)),
        dead=average(cells, lambda c: sum(x.dead for x in c.layers) if c.layers else math.nan),
        solved=solved.said(),
    )


def average(cells: Sequence[Measurement], of: Callable[[Measurement], float]) -> float:
    """The mean over cells."""
    return float(np.mean([of(cell) for cell in cells]))


COLUMNS: dict[str, Callable[[Row], str]] = {
    "system": lambda r: r.system,
    "loss": lambda r: f"{r.loss:.4f}" + ("" if math.isnan(r.deviation) else f" ± {r.deviation:.4f}"),
    "gap": lambda r: gap(r),
    "total": lambda r: count(r.total).strip(),
    "active": lambda r: count(r.active).strip(),
    "MFLOPs": lambda r: f"{r.flops / 1e6:.3f}",
    "used": lambda r: f"{r.used / 1e6:.3f}",
    "tok/s": lambda r: f"{r.speed:,.0f}",
    "null": lambda r: share(r.null_share, ".1%"),
    "mean k": lambda r: share(r.mean_k, ".2f"),
    "max/mean": lambda r: share(r.load_ratio, ".2f"),
    "dead": lambda r: share(r.dead, "g"),
}


def gap(r: Row) -> str:
    """The loss minus the reference's with its sign, and what counts as chance: deviation over seeds where there are
    several, else the standard error over windows."""
    if math.isnan(r.gap) or (r.gap == 0 and r.gap_error == 0):
        return "-"
    chance = r.gap_error if math.isnan(r.gap_deviation) else r.gap_deviation
    return f"{r.gap:+.4f} ± {chance:.4f}"


def share(value: float, form: str) -> str:
    """A figure that dense systems do not have."""
    return "-" if math.isnan(value) else format(value, form)


def markdown(table: Sequence[Row], plan: Plan, notes: Sequence[str] = ()) -> str:
    """The table with what its columns mean, how it was made, and remarks."""
    several = plan.spec.seeds > 1
    spread = "deviation over seeds" if several else "standard error over held-out windows"
    legend = (
        f"loss: held-out nats per byte, {'± deviation over seeds' if several else 'one seed'}; gap: loss minus that of "
        f"{plan.spec.reference} on the same windows, negative is better, ± its {spread}; active: parameters used for "
        "a token; MFLOPs: active operations of the forward pass per token as they were made equal, used: with the "
        "experts that were really used; tok/s: tokens trained per second of one thread's CPU time; null: share of the "
        "slots with a null expert; mean k: slots per token; max/mean: load of the routed experts in the worst layer; "
        "dead: routed experts of all layers with less than 1 % of the even share."
    )
    training = f"Training: {plan.spec.train}, peak learning rate {plan.spec.train.lr:g}."
    return "\n".join([*grid(table), "", legend, "", "  \n".join([training, *notes])]) + "\n"


def grid(table: Sequence[Row]) -> list[str]:
    """The lines of the table itself, columns of even width."""
    head, body = list(COLUMNS), [[form(row) for form in COLUMNS.values()] for row in table]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [[cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in [head, *body]]
    lines.insert(1, ["-" * w for w in widths])
    return [f"| {' | '.join(line)} |" for line in lines]


def write(table: Sequence[Row], plan: Plan, notes: Sequence[str] = ()) -> list[Path]:
    """table.md, table.csv and table.json in the comparison's folder, each written beside and renamed."""
    plain = [{key: _known(value) for key, value in asdict(row).items()} for row in table]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(plain[0]) if plain else ["system"])
    writer.writeheader()
    writer.writerows(plain)
    train = {**asdict(plan.spec.train), "chosen": plan.spec.train.chosen()}
    whole = {"reference": plan.spec.reference, "train": train, "rows": plain, "notes": list(notes)}
    contents = {
        "table.md": markdown(table, plan, notes),
        "table.csv": text.getvalue(),
        "table.json": json.dumps(whole, indent=2) + "\n",
    }
    return [replace_text(plan.folder / name, content) for name, content in contents.items()]


def _known(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def replace_text(path: Path, content: str) -> Path:
    """Writes a file beside its place and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(content, encoding="utf-8", newline="")
    return beside.replace(path)
