"""What the statistics of a step cost, as a share of the MoE layer's forward pass.

    python benchmarks/stats_cost.py [--tokens 1024]

Both are timed in turn in one process on one thread, in thread CPU time; the median of the rounds is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from modalities.base import Tokens
from zoo.moe.layer import MoE
from zoo.moe.routing import RoutingContext
from zoo.moe.spec import MoESpec
from zoo.moe.stats import Stats
from zoo.spec import parse

SHAPES = {  # name: experts, k, D, F
    "8 experts, top-2, 512 x 1792": (8, 2, 512, 1792),
    "64 experts, top-8, 512 x 256": (64, 8, 512, 256),
    "8 experts, top-2, 128 x 128": (8, 2, 128, 128),
}


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Median thread CPU time of a call in milliseconds."""
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return 1000 * statistics.median(times)


def compute(stats: Stats) -> list[torch.Tensor]:
    """All figures of a step, which are computed when they are asked for."""
    return [stats.load, stats.entropy, stats.null_share, stats.dropped_share, stats.mean_k, stats.imbalance]


def main() -> None:
    """Prints one row per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'shape':32} {'layer ms':>9} {'stats ms':>9} {'share':>7}   ({args.tokens} tokens, forward, 1 thread)")
    for name, (experts, k, dim, hidden) in SHAPES.items():
        plain = {
            "type": "moe", "routed": experts, "experts": {"type": "swiglu", "hidden": hidden},
            "router": {"type": "top_k", "k": k},
        }  # fmt: skip
        layer = MoE(parse(MoESpec, plain), dim).eval()
        x = torch.randn(1, args.tokens, dim)
        ctx = RoutingContext.of(Tokens(embedding=x))
        with torch.inference_mode():
            routing = layer(x, ctx).routing
            whole = median_ms(lambda layer=layer, x=x, ctx=ctx: layer(x, ctx), args.rounds)  # type: ignore[misc]
            stats = median_ms(lambda r=routing, p=layer.pool: compute(Stats(r, p)), args.rounds)  # type: ignore[misc]
        print(f"{name:32} {whole:9.2f} {stats:9.3f} {stats / whole:7.1%}")


if __name__ == "__main__":
    main()
