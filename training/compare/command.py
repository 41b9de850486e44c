"""`python -m training compare`: any systems, equal text, equal active operations, one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from training.compare import plan as planning
from training.compare.cells import sources
from training.compare.config import read
from training.compare.drawing import draw
from training.compare.plan import Plan
from training.compare.running import run_cells
from training.compare.table import markdown, rows, write


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(prog="python -m training compare", description=__doc__, allow_abbrev=False)
    p.add_argument("--config", required=True, help="a comparison, such as configs/compare/routers-small.yaml")
    p.add_argument("--seeds", type=int, metavar="N", help="seeds 0 .. N-1 of each system")
    p.add_argument("--only", nargs="+", action="extend", default=[], metavar="NAME", help="run only these")
    p.add_argument("--workers", type=int, metavar="N", help="processes, one thread each")
    p.add_argument("--output", help="folder of the results, in place of the one the file names")
    p.add_argument("--dry_run", "--dry-run", action="store_true", help="print the plan and its time, run nothing")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is not finished, then writes table and plots. Returns 0, 1 where a cell failed, 2 on wrong input."""
    a = parser().parse_args(argv)
    try:
        spec = read(a.config, seeds=a.seeds, workers=a.workers, output=a.output)
        plan = planning.make(spec)
        cells = plan.cells(a.only)
        if a.dry_run:
            print("\n".join(planning.lines(plan, cells, progress=not a.quiet)))
            return 0
        for system in plan.systems:
            flops = f"{system.solved.flops / 1e6:.3f} MFLOPs per token"
            print(f"{system.name}: {flops}, {system.solved.said()}", flush=True)
        failed = run_cells(cells, plan.folder, spec.workers, progress=not a.quiet)
        return report(plan, failed, f"python -m training compare --config {a.config} --seeds {spec.seeds}")
    except KeyboardInterrupt:
        print("stopped; finished cells are kept, the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def report(plan: Plan, failed: dict[str, str], command: str) -> int:
    """Prints and writes the table, draws, and says what failed."""
    table = rows(plan)
    said = [f"Command: `{command}`.", *remarks(plan), *(f"Failed: {name}." for name in failed)]
    print()
    print(markdown(table, plan, said))
    paths = [*write(table, plan, said), *draw(plan)]
    print(f"{len(paths)} files in {plan.folder}: " + ", ".join(path.name for path in paths))
    for name, trace in failed.items():
        print(f"failed: {name}\n{trace}", file=sys.stderr)
    return 1 if failed else 0


def remarks(plan: Plan) -> list[str]:
    """Where the cells come from: commits, and those measured with other sources than the present ones."""
    found = [cell for system in plan.systems for cell in plan.found(system)]
    commits = sorted({cell.commit for cell in found if cell.commit})
    now = sources()
    older = sorted({f"{cell.system} (seed {cell.seed})" for cell in found if cell.sources != now})
    lines = [f"Measured at commit {', '.join(commits)}."] if commits else []
    if older:
        lines.append(
            f"The sources have changed since these were measured: {', '.join(older)}; remove their files in "
            f"{plan.folder / 'cells'} to measure them again."
        )
    return lines
