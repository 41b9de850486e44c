"""What a run leaves behind: Markdown tables for people, JSON for programs."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.layer.clock import Floors
from benchmarks.layer.measure import Row, Section

ROOT = Path(__file__).resolve().parents[2]
VECTOR_FLAGS = ("avx", "fma", "amx", "asimd", "sve", "neon")


def machine(device: str) -> dict[str, Any]:
    """CPU model, cores, vector flags and load; the GPU where it is measured."""
    info: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags": [f for f in flags if f.startswith(VECTOR_FLAGS)],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def versions() -> dict[str, str]:
    """Of Python and of what was measured."""
    names = ("moezoo", "torch", "transformers", "triton")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any]:
    """The commit measured, and whether the code differed from it; None outside a checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "zoo", "modalities", "benchmarks")
    return {"commit": git("rev-parse", "--short=10", "HEAD"), "changed": None if changed is None else bool(changed)}


def opened(benchmark: str, options: dict[str, Any], device: str) -> dict[str, Any]:
    """What a run writes, before its first section: where it comes from."""
    return {
        "benchmark": benchmark,
        "command": f"python benchmarks/{benchmark}.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": options,
        "machine": machine(device),
        "versions": versions(),
        **commit(),
        "sections": [],
    }


def headline(result: dict[str, Any], how: str) -> str:
    """The first line of a printed run."""
    head = result["machine"]
    changed = " with changes" if result["changed"] else ""
    return f"{head['gpu'] or head['cpu']}, {how}, {result['versions']}, commit {result['commit']}{changed}\n"


def show(result: dict[str, Any], section: Section) -> None:
    """Prints a section and keeps it."""
    result["sections"].append(as_json(section))
    print("\n".join(table(section)), flush=True)


def floors_line(floors: Floors, mode: str) -> str:
    """The floors in words; a backward pass adds twice the FLOPs, reads weights once more and writes them."""
    times = 3 if mode == "train" else 1
    text = (
        f"Floors: FLOPs {times * floors.flops_ms:.3g} ms at {floors.gemm_rate / 1e9:.4g} GFLOP/s, "
        f"bytes {times * floors.bytes_ms:.3g} ms at {floors.copy_rate / 1e9:.3g} GB/s"
    )
    if floors.experts_ms is not None and mode == "forward":
        ratio = floors.experts_ms / floors.flops_ms
        text += f"; the experts' products alone {floors.experts_ms:.3g} ms, {ratio:.2f} of the dense products"
    return text + "."


def table(section: Section) -> Iterator[str]:
    """A Markdown table with its heading, floors, targets and what was left out."""
    yield f"### {section.title}\n"
    if section.floors is not None and section.mode != "memory":
        yield floors_line(section.floors, section.mode) + "\n"
    if section.agreement:
        yield f"Outputs compared: the greatest relative difference is {max(section.agreement.values()):.1e}.\n"
    columns = list(dict.fromkeys(key for row in section.rows for key in row.ratios))
    heads = ["candidate", section.unit, "quartiles", *(f"/ {c}" for c in columns), "target"]
    yield "| " + " | ".join(heads) + " |"
    yield "| --- |" + " ---: |" * (len(heads) - 2) + " --- |"
    for row in section.rows:
        yield _line(row, columns, section)
    for name, reason in section.skipped.items():
        yield f"\nNot measured: {name} ({reason})."
    yield ""


def _line(row: Row, columns: list[str], section: Section) -> str:
    ratios = [f"{row.ratios[c]:.2f}" if c in row.ratios else "" for c in columns]
    targets = "; ".join(
        f"{v.base} <= {v.limit:.2f} {'met' if v.met else 'missed'}" for v in section.verdicts if v.name == row.name
    )
    spread = "" if row.low == row.high else f"{row.low:.4g}-{row.high:.4g}"
    return "| " + " | ".join([row.name, f"{row.value:.4g}", spread, *ratios, targets]) + " |"


def as_json(section: Section) -> dict[str, Any]:
    """Plain values only."""
    return asdict(section)
