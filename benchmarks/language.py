"""Whole language models beside transformers: the same random checkpoint, read by both.

    python benchmarks/language.py [--models olmoe,mixtral] [--jobs prefill,train] [--threads 2] [--json FILE]

transformers runs with each of its expert implementations, all with torch's attention kernels, ours as it is loaded and
packed (zoo.load(folder, pack=True)). Logits and the likeliest
tokens are compared first. With one thread its CPU time counts, with several the wall time; all candidates take turns
and medians are printed, with the ratio to transformers' best. Nothing is asserted about times.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.layer import report
from benchmarks.models.candidates import IMPLEMENTATIONS
from benchmarks.models.jobs import measure
from benchmarks.models.shapes import JOBS, MODELS


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--models", default=",".join(MODELS), help=f"which of {', '.join(MODELS)} (default: all)")
    found.add_argument("--jobs", default=",".join(JOBS), help=f"which of {', '.join(JOBS)} (default: all)")
    found.add_argument(
        "--without", action="append", default=[], choices=IMPLEMENTATIONS, help="leave out one of theirs"
    )
    found.add_argument("--rounds", type=int, default=5, help="samples of each candidate (default: 5)")
    found.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    found.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE")
    found.add_argument("--quick", action="store_true", help="tiny models and 2 rounds: checks this program, no figures")
    return found


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked."""
    args = parser().parse_args(arguments)
    args.models, args.jobs = args.models.split(","), args.jobs.split(",")
    args.rounds = 2 if args.quick else args.rounds
    for option, known in (("models", MODELS), ("jobs", JOBS)):
        for name in getattr(args, option):
            if name not in known:
                parser().error(f"--{option}: got {name!r}, expected some of {', '.join(known)}")
    if {*args.without} == {*IMPLEMENTATIONS}:
        parser().error("--without: got all, expected one to compare with")
    for option in ("rounds", "threads"):
        if getattr(args, option) < 1:
            parser().error(f"--{option}: got {getattr(args, option)}, expected 1 or more")
    return args


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints as it goes, and returns what --json writes."""
    args = options(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        result = _measure(args)
    finally:
        torch.set_num_threads(threads)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: getattr(args, name) for name in ("models", "jobs", "rounds", "threads", "without", "quick")}
    result = report.opened("language", chosen, "cpu")
    print(report.headline(result, f"{args.threads} threads"))
    for name in args.models:
        model = MODELS[name].tiny() if args.quick else MODELS[name]
        for section in measure(model, args.rounds, args.jobs, args.without):
            report.show(result, section)
    if args.quick:
        print("Tiny models: these figures mean nothing.")
    return result


if __name__ == "__main__":
    run()
