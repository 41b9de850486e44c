"""What rows that null experts take over save, beside what their number promises and what products alone allow.

    python benchmarks/null_experts.py [--entry moe-plus-plus] [--taus 0.75,0.25] [--tokens 2048,8192] [--json FILE]

One MoE layer of the entry at another width, and the vanilla layer with the same networks and no null experts, in turns
on one thread; training.claims.null_rows says how the slots are put where tau wants them. The products alone are those
of the experts, one library call each at the same numbers of rows, in buffers that are there. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.layer import report
from training.claims.lab import one_thread
from training.claims.null_rows import Gain, Side, Work, gains, layer_of, routed_share, sides, timed
from zoo.hub.entries import find_entry

HEAD = "| {} tokens, {} | ms | gain | promised | products alone | of promised |\n| --- |" + " ---: |" * 5


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--entry", default="moe-plus-plus", help="whose first block's MoE layer (default: moe-plus-plus)"
    )
    found.add_argument("--taus", default="0.75,0.25", help="load of a routed expert over that of a null one")
    found.add_argument("--tokens", default="2048,8192", help="tokens in a batch (default: 2048,8192)")
    found.add_argument("--dim", type=int, default=768, help="width of the layer (default: 768)")
    found.add_argument("--hidden", type=int, default=2048, help="width of an expert (default: 2048)")
    found.add_argument("--rounds", type=int, default=7, help="turns of each layer (default: 7)")
    found.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE")
    found.add_argument("--quick", action="store_true", help="a tiny size and 1 round: checks this program, no figures")
    return found


class Products:
    """The bare products of a side's experts at its numbers of rows: forward, or with the gradients of all."""

    def __init__(self, side: Side) -> None:
        experts: Any = side.layer.experts
        self.up, self.down, self.rows = experts.gate_up.detach(), experts.down.detach(), side.rows
        widths = (self.up.shape[2], self.down.shape[2], self.up.shape[1])
        self.given = [torch.randn(max(side.rows), width) for width in widths]
        self.out = [torch.empty_like(rows) for rows in self.given]
        self.grads = torch.empty_like(self.up[0]), torch.empty_like(self.down[0])

    def seconds(self, work: Work) -> float:
        """Thread CPU time of them all."""
        return timed(lambda: self.run(work))

    def run(self, work: Work) -> None:
        """One expert after the other."""
        for up, down, n in zip(self.up, self.down, self.rows, strict=True):
            (x, a, inner), (to_x, to_a, to_inner) = ([rows[:n] for rows in kind] for kind in (self.given, self.out))
            torch.mm(x, up.t(), out=to_inner)
            torch.mm(a, down.t(), out=to_x)
            if work == "train":
                torch.mm(x, down, out=to_a)
                torch.mm(inner, up, out=to_x)
                torch.mm(x.t(), a, out=self.grads[1])
                torch.mm(inner.t(), x, out=self.grads[0])


def floors(compared: Sequence[Side], work: Work, rounds: int) -> list[float]:
    """The gain of each side's bare products over the first one's: the least of the rounds each."""
    bare = [Products(side) for side in compared]
    turns = [[products.seconds(work) for products in bare] for _ in range(rounds)]
    least = [min(own) for own in zip(*turns, strict=True)]
    return [least[0] / max(own, 1e-9) for own in least]


def lines(title: tuple[int, str], names: Sequence[str], found: Sequence[Gain], bare: Sequence[float]) -> list[str]:
    """A Markdown table."""
    rows = [
        f"| {name} | {1e3 * gain.seconds:.1f} | {gain.found:.3f} | {gain.promised:.3f} | {floor:.3f} "
        f"| {gain.found / gain.promised:.2f} |"
        for name, gain, floor in zip(names, found, bare, strict=True)
    ]
    return [HEAD.format(*title), *rows, ""]


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints as it goes, and returns what --json writes."""
    args = parser().parse_args(arguments)
    if args.quick:
        args.tokens, args.dim, args.hidden, args.rounds = "60", 16, 8, 1
    chosen = {name: getattr(args, name) for name in ("entry", "taus", "tokens", "dim", "hidden", "rounds", "quick")}
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = report.opened("null_experts", chosen, "cpu")
        print(report.headline(result, f"D {args.dim}, F {args.hidden}, {args.rounds} rounds"))
        for tokens in map(int, args.tokens.split(",")):
            result["sections"] += _sections(args, tokens)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _sections(args: argparse.Namespace, tokens: int) -> list[dict[str, Any]]:
    ffn, taus = layer_of(find_entry(args.entry)), [float(tau) for tau in args.taus.split(",")]
    x = torch.randn(1, tokens, args.dim)
    compared = sides(ffn, args.dim, args.hidden, x, [routed_share(ffn, tau) for tau in taus])
    names, sections = ["vanilla", *(f"tau {tau:g}" for tau in taus)], []
    works: tuple[Work, ...] = ("forward", "train")
    for work in works:
        found, bare = gains(compared, x, work, args.rounds), floors(compared, work, args.rounds)
        print("\n".join(lines((tokens, work), names, found, bare)), flush=True)
        rows = [
            {"name": n, "rows": s.rows, "products": b, **vars(g)}
            for n, s, g, b in zip(names, compared, found, bare, strict=True)
        ]
        sections.append({"tokens": tokens, "work": work, "rows": rows})
    return sections


if __name__ == "__main__":
    run()
