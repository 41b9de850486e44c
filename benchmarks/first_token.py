"""How long `zoo generate` takes to its first token, beside what nobody can do without: importing torch and reading the
weights.

    python benchmarks/first_token.py [--parameters 3.75e8] [--rounds 5] [--prompt TEXT] [--quick] [--json FILE]

A random OLMoE-like checkpoint with a tokenizer is written to a temporary folder. Each candidate is a process of its own
and they take turns; files are in the page cache. "floor" imports torch, maps the files and copies every tensor once.
"zoo" is the command `zoo generate FOLDER --prompt TEXT --stream` for one token, "transformers" loads the same folder
and runs generate for one token. Time is that of the wall from the start of the process until it prints (zoo: more
than the prompt); CPU is its user and system time until then. Ratios are medians of the ratios to the floor of the same
round. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, os.fspath(Path(__file__).parent))
import loading

FLOOR = """
import sys, torch
from pathlib import Path
from safetensors import safe_open
held = []
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(str(path), framework="pt") as opened:
        held += [opened.get_tensor(name).clone() for name in opened.keys()]
print(len(held), flush=True)
"""
TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2], return_tensors="pt")
print(model.generate(**ids, max_new_tokens=1, do_sample=False)[0, -1].item(), flush=True)
"""
ZOO = "import sys; from zoo.cli import main; sys.exit(main(sys.argv[1:]))"
CANDIDATES = ("floor", "zoo", "transformers")


def command(candidate: str, folder: Path, prompt: str) -> list[str]:
    """What is run."""
    if candidate == "zoo":
        words = ["generate", os.fspath(folder), "--prompt", prompt, "--stream", "--max-new-tokens", "1"]
        return [sys.executable, "-c", ZOO, *words, "--temperature", "0"]
    return [sys.executable, "-c", FLOOR if candidate == "floor" else TRANSFORMERS, os.fspath(folder), prompt]


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes, none of which ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.save(os.fspath(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def measure(words: list[str], skip: int) -> dict[str, float]:
    """Seconds until a process has written more than `skip` bytes, by the wall and of its CPU; it is let run to its end
    afterwards."""
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        written = 0
        while written <= skip:
            some = os.read(process.stdout.fileno(), 4096)
            if not some:
                raise RuntimeError(process.stderr.read().decode().strip().splitlines()[-1])
            written += len(some)
        wall, cpu = time.perf_counter() - start, cpu_of(process.pid)
        process.communicate()
    return {"wall": wall, "cpu": cpu}


def cpu_of(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rounds(folder: Path, prompt: str, count: int, candidates: tuple[str, ...]) -> dict[str, list[dict[str, float]]]:
    """All candidates in turns, another one first each time; the first round only warms the page cache."""
    found: dict[str, list[dict[str, float]]] = {candidate: [] for candidate in candidates}
    for i in range(count + 1):
        shift = i % len(candidates)
        for candidate in candidates[shift:] + candidates[:shift]:
            result = measure(command(candidate, folder, prompt), len(prompt.encode()) if candidate == "zoo" else 0)
            if i:
                found[candidate].append(result)
    return found


def main() -> None:
    """Prints one row per candidate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=3.75e8, help="1.5 GB in float32")
    parser.add_argument("--stored", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", default="To be, or not to be")
    parser.add_argument("--without", action="append", default=[], choices=CANDIDATES[2:])
    parser.add_argument("--quick", action="store_true", help="a tiny checkpoint and one round, to check the program")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    candidates = tuple(c for c in CANDIDATES if c not in args.without)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = loading.write(
            folder, loading.fields(1e6 if args.quick else args.parameters), getattr(torch, args.stored)
        )
        write_tokenizer(folder)
        found = rounds(folder, args.prompt, 1 if args.quick else args.rounds, candidates)
    print(f"checkpoint: {size / 1e9:.2f} GB in {args.stored}; {len(found['floor'])} rounds, medians")
    print(f"{'candidate':14} {'wall s':>7} {'of floor':>9} {'CPU s':>7} {'of floor':>9}")
    for candidate in candidates:
        print(f"{candidate:14} " + " ".join(row(found[candidate], found["floor"], kind) for kind in ("wall", "cpu")))
    if args.json is not None:
        args.json.write_text(json.dumps({"bytes": size, "rounds": found}, indent=2) + "\n", encoding="utf-8")


def row(mine: list[dict[str, Any]], floor: list[dict[str, Any]], kind: str) -> str:
    """The median, and that of the ratios round by round."""
    ratios = [a[kind] / b[kind] for a, b in zip(mine, floor, strict=True)]
    return f"{statistics.median(m[kind] for m in mine):7.2f} {statistics.median(ratios):9.2f}"


if __name__ == "__main__":
    main()
