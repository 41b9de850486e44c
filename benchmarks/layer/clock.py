"""Time, peak memory and the rates of the machine.

Time on a CPU is the CPU time of this thread (`time.thread_time`), which other jobs on the machine disturb least, where
torch has one thread, and wall time where it has several; on a GPU it is the time between two events. Candidates take
turns: each round calls every one once, starting with another one each time, and the median over rounds counts.

Peak memory is what torch's allocator held at most, beyond what was alive before: on a GPU its own counter, on a CPU
the running sum of the allocations and releases that the profiler records, to the byte and the same in every run. The
resident set of a subprocess would add allocator slack, thread stacks and the import's own peak, tens of MiB beside
figures of two hundred. Scratch inside a BLAS call is in neither.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.layer.shapes import Shape

Call = Callable[[], object]
SLOW = 8  # a candidate this many times slower than the fastest takes part in the first rounds only
SLOW_ROUNDS = 2
MIN_MS = 5.0  # one sample is repeated until it lasts this long


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: the median over the rounds and the quartiles."""

    ms: float
    low: float
    high: float
    rounds: int


def elapsed_ms(call: Call, repeats: int, device: str) -> float:
    """Milliseconds of one call, of `repeats` in a row."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / repeats
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    for _ in range(repeats):
        call()
    return 1000 * (clock() - begin) / repeats


def interleave(
    calls: Mapping[str, Call], rounds: int, device: str, after: Call = lambda: None, min_ms: float = MIN_MS
) -> dict[str, Timing]:
    """Times the calls in turns. `after` runs untimed after each sample (it drops gradients)."""
    first: dict[str, float] = {}
    for _ in range(2):
        for name, call in calls.items():
            if not first or first.get(name, 0) <= SLOW * min(first.values()):
                first[name] = elapsed_ms(call, 1, device)
                after()
    repeats = {name: max(1, round(min_ms / max(ms, 1e-3))) for name, ms in first.items()}
    slow = SLOW * min(first.values())
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if first[name] <= slow or turn < SLOW_ROUNDS:
                samples[name].append(elapsed_ms(calls[name], repeats[name], device))
                after()
    return {name: _timing(values) for name, values in samples.items()}


def _timing(values: list[float]) -> Timing:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Timing(statistics.median(values), low, high, len(values))


def peak_bytes(call: Call, device: str) -> int:
    """The most bytes alive at once during the call, beyond those alive before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted(
        (e for e in events if e.get("name") == "[memory]"), key=lambda e: (e["ts"], e["args"]["Ev Idx"])
    ):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def copy_rate(device: str, dtype: torch.dtype, mib: int, rounds: int) -> float:
    """Bytes per second, read and written, of a copy of `mib` MiB."""
    source = torch.ones(mib * 2**20 // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    timing = interleave({"copy": lambda: target.copy_(source)}, rounds, device)["copy"]
    return 2 * source.numel() * dtype.itemsize / timing.ms * 1000


@dataclass(frozen=True)
class Floors:
    """What a shape takes at least on this machine, in milliseconds; times three in FLOPs with a backward pass.

    gemm_rate    FLOP/s of the dense products of the yardstick's shape, the SwiGLU's activation left out
    copy_rate    bytes/s, read and written
    flops_ms     FLOPs of the active experts over gemm_rate
    bytes_ms     weights of the touched experts and the tokens, once each, over copy_rate
    experts_ms   the experts' own products alone, one `torch.mm` after the other at an even load: what torch's operators
                 leave to gain; None where one expert has less than one row
    """

    gemm_rate: float
    copy_rate: float
    flops_ms: float
    bytes_ms: float
    experts_ms: float | None


def measure_floors(shape: Shape, device: str, dtype: torch.dtype, copy: float, rounds: int) -> Floors:
    """The floors of one forward pass."""

    def product(rows: int, inner: int, outer: int, count: int = 1) -> Call:
        x = torch.randn(count, rows, inner, device=device, dtype=dtype)
        weight = torch.randn(count, outer, inner, device=device, dtype=dtype)
        out = torch.empty(count, rows, outer, device=device, dtype=dtype)

        def call() -> None:
            for i in range(count):
                torch.mm(x[i], weight[i].t(), out=out[i])

        return call

    wide = shape.k * shape.hidden
    calls = {"up": product(shape.tokens, shape.dim, 2 * wide), "down": product(shape.tokens, wide, shape.dim)}
    rows = shape.tokens * shape.k // shape.experts
    if rows:
        calls["experts up"] = product(rows, shape.dim, 2 * shape.hidden, shape.experts)
        calls["experts down"] = product(rows, shape.hidden, shape.dim, shape.experts)
    with torch.inference_mode():
        times = interleave(calls, rounds, device)
    rate = shape.flops / (times["up"].ms + times["down"].ms) * 1000
    moved = shape.weight_bytes(dtype.itemsize) + shape.token_bytes(dtype.itemsize)
    experts = times["experts up"].ms + times["experts down"].ms if rows else None
    return Floors(rate, copy, shape.flops / rate * 1000, moved / copy * 1000, experts)
