"""How much anonymous memory, and how long, loading a large checkpoint takes beside transformers.

    python benchmarks/loading.py [--parameters 1e9] [--stored float32] [--dtype bfloat16] [--quick]

A random OLMoE-like checkpoint is written to a temporary folder (file by file, never held whole) and loaded in a fresh
process per candidate. Memory is the most that RssAnon of /proc/self/status grew over what the imports took, sampled
every 2 ms: mapped file pages, which the system can drop at any time, do not count. Files are in the page cache, so time
is that of copying and building, not of the disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CANDIDATES = ("zoo", "zoo, own format", "transformers")
LAYERS, EXPERTS, VOCABULARY = 16, 32, 50304


def fields(parameters: float) -> dict[str, Any]:
    """config.json of an OLMoE with about this many parameters; experts of half the width hold most of them."""
    width = 64
    while LAYERS * (EXPERTS * 3 * width * width // 2 + 4 * width * width) + 2 * VOCABULARY * width < parameters:
        width += 64
    return {
        "model_type": "olmoe",
        "architectures": ["OlmoeForCausalLM"],
        "hidden_size": width,
        "intermediate_size": width // 2,
        "num_attention_heads": width // 64,
        "num_hidden_layers": LAYERS,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 8,
        "vocab_size": VOCABULARY,
    }


def write(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> int:
    """Writes a random checkpoint in files of 1 GB; returns its bytes."""
    from zoo.hub import files, skeleton
    from zoo.hub.conversion.checkpoint import describe, full

    family, spec = describe(config, folder / "config.json")
    state = skeleton.build(spec.build).state_dict()
    pieces = {piece.theirs: piece for piece in family.rules(full(spec), family.layouts[0])}
    forms = {name: torch.empty(p.form(state), dtype=dtype, device="meta") for name, p in pieces.items()}

    def value(name: str) -> Tensor:
        return torch.randn(forms[name].shape, dtype=dtype).mul_(0.02)

    files.write_tensors(folder, forms, value, 10**9)
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": str(dtype).removeprefix("torch.")}))
    return skeleton.size(forms.values())


def anonymous() -> int:
    """Bytes of this process that belong to no file."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def watching() -> Iterator[list[int]]:
    """The greatest anonymous memory inside, as the list's one entry."""
    peak, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], anonymous())


def loader(candidate: str, folder: str, dtype: torch.dtype | None) -> Callable[[], Any]:
    """What a candidate does, everything imported."""
    if candidate == "transformers":
        from transformers import AutoModelForCausalLM, OlmoeForCausalLM  # noqa: F401

        return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    import zoo
    import zoo.hub.conversion.checkpoint
    import zoo.models.unified

    return lambda: zoo.load(folder, dtype=dtype)


def child(candidate: str, folder: str, dtype: str | None) -> None:
    """Loads once and prints seconds and bytes as JSON."""
    torch.set_num_threads(1)
    load = loader(candidate, folder, None if dtype is None else getattr(torch, dtype))
    before = anonymous()
    with watching() as peak:
        start = time.perf_counter()
        model = load()
        seconds = time.perf_counter() - start
    kept = sum(p.numel() * p.element_size() for p in model.parameters())
    print(json.dumps({"seconds": seconds, "peak": peak[0] - before, "model": kept}))


def measure(candidate: str, folder: Path, dtype: str | None) -> dict[str, float]:
    """A candidate in a process of its own, its files read once before."""
    for path in folder.iterdir():
        with path.open("rb") as handle:
            while handle.read(1 << 24):
                pass
    command = [sys.executable, __file__, "--child", candidate, str(folder), *([dtype] if dtype else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{candidate}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Prints one row per candidate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--stored", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="that of the files if left out")
    parser.add_argument("--quick", action="store_true", help="a tiny checkpoint, to check the program")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], args.child[2] if len(args.child) > 2 else None)
        return
    import zoo

    with tempfile.TemporaryDirectory() as temporary:
        folder, own = Path(temporary) / "public", Path(temporary) / "own"
        folder.mkdir()
        size = write(folder, fields(1e6 if args.quick else args.parameters), getattr(torch, args.stored))
        zoo.save(zoo.load(folder), own, max_shard_size=10**9)
        print(f"checkpoint: {size / 1e9:.2f} GB in {args.stored}, loaded as {args.dtype or args.stored}")
        print(f"{'candidate':16} {'seconds':>8} {'model GB':>9} {'anonymous GB':>13} {'of the model':>13}")
        for candidate in CANDIDATES:
            found = measure(candidate, own if candidate == "zoo, own format" else folder, args.dtype)
            share = found["peak"] / found["model"]
            gigabytes = f"{found['model'] / 1e9:9.2f} {found['peak'] / 1e9:13.2f}"
            print(f"{candidate:16} {found['seconds']:8.2f} {gigabytes} {share:13.2f}")


if __name__ == "__main__":
    main()
