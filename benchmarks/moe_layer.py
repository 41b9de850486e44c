"""The MoE layer's speed and memory beside transformers' expert implementations and a dense layer of the same FLOPs.

    python benchmarks/moe_layer.py [--shapes fine,coarse,null] [--rounds 15] [--json FILE]

Outputs and gradients are compared first. On a CPU one thread is used and its CPU time counts, on a GPU events; all
candidates take turns and medians are printed, as Markdown tables with the ratio to the dense yardstick (a SwiGLU of
width k * F) and to transformers' best, and the project's targets beside them. Nothing is asserted about times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.layer import measure, report, studies
from benchmarks.layer.clock import copy_rate
from benchmarks.layer.shapes import SHAPES, STUDIES, tiny

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*SHAPES, *STUDIES]
    found.add_argument("--shapes", metavar="NAME[,NAME]", help=f"which of {', '.join(names)} (default: the device's)")
    found.add_argument("--rounds", type=int, default=15, help="samples of each candidate (default: 15)")
    found.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE")
    found.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    found.add_argument("--dtype", choices=tuple(DTYPES), help="default: float32 on cpu, bfloat16 on cuda")
    found.add_argument("--quick", action="store_true", help="tiny shapes and 2 rounds: checks this program, no figures")
    return found


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and completed."""
    args = parser().parse_args(arguments)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    args.rounds = 2 if args.quick else args.rounds
    if args.rounds < 1:
        parser().error(f"--rounds: got {args.rounds}, expected 1 or more")
    default = [name for name, s in SHAPES.items() if s.device == args.device or name.startswith("decode")]
    args.shapes = args.shapes.split(",") if args.shapes else [*default, *STUDIES]
    for name in args.shapes:
        if name not in SHAPES and name not in STUDIES:
            parser().error(f"--shapes: got {name!r}, expected some of {', '.join([*SHAPES, *STUDIES])}")
    return args


def sections(name: str, setting: measure.Setting, quick: bool) -> list[measure.Section]:
    """The tables of a shape or study."""
    if name == "null":
        return studies.null_share(setting, quick=quick)
    if name == "experts":
        return studies.many_experts(setting, quick=quick)
    return measure.measure(tiny(SHAPES[name]) if quick else SHAPES[name], setting)


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints as it goes, and returns what --json writes."""
    args = options(arguments)
    dtype = DTYPES[args.dtype]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            result = _measure(args, dtype)
    finally:
        torch.set_num_threads(threads)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _measure(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    rate = copy_rate(args.device, dtype, 4 if args.quick else 256, args.rounds)
    setting = measure.Setting(device=args.device, dtype=dtype, rounds=args.rounds, copy_rate=rate)
    chosen = {name: getattr(args, name) for name in ("shapes", "rounds", "device", "dtype", "quick")}
    result = {**report.opened("moe_layer", chosen, args.device), "copy_bytes_per_second": rate}
    print(report.headline(result, f"{args.dtype}, {args.rounds} rounds"))
    for name in args.shapes:
        for section in sections(name, setting, args.quick):
            report.show(result, section)
    if args.quick:
        print("Tiny shapes: these figures mean nothing.")
    return result


if __name__ == "__main__":
    run()
