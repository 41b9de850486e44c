"""The verbs about folders of weights: load-check, convert, average, prefetch."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zoo.commands.outputs import PRECISIONS, REF, REMOTE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from zoo.models.unified import Unified

UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}}
UNITS |= {f"{p}IB": 1024**i for i, p in enumerate("KMGT", 1)}
TRAINED = (".ckpt", ".pt", ".pth")


def size(text: str) -> int:
    """A number of bytes: 2GB, 500MB, 1.5GiB, 123456. Raises ArgumentTypeError, which the parser reports."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    if match is None or match[2] not in UNITS or (found := int(float(match[1]) * UNITS[match[2]])) < 1:
        raise ArgumentTypeError(f"got {text!r}, expected a number of bytes such as 2GB, 500MB or 1GiB")
    return found


def load_check_options(p: ArgumentParser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)
    p.add_argument("--parity", action="store_true", help="compare a batch with transformers, one model at a time")
    p.add_argument("--ignore-remote-code", action="store_true", help=REMOTE)
    p.add_argument("--json", action="store_true", help="print JSON")


def run_load_check(a: Namespace) -> int:
    """`zoo load-check`: the report; status 1 where something is wrong."""
    from zoo.hub.check import check

    report = check(a.ref, parity=a.parity, progress=not a.json, ignore_remote_code=a.ignore_remote_code)
    print(json.dumps(report.plain(), indent=2) if a.json else report)
    return int(not report.ok)


def prefetch_options(p: ArgumentParser) -> None:
    p.add_argument("ref", metavar="REF", help=REF)


def run_prefetch(a: Namespace) -> None:
    """`zoo prefetch`: the folder where the weights lie now."""
    from zoo.hub.weights import prefetch

    print(prefetch(a.ref))


def convert_options(p: ArgumentParser) -> None:
    p.add_argument("source", metavar="SRC", help=f"{REF}, or a checkpoint of our training, such as last.ckpt")
    p.add_argument("folder", type=Path, metavar="DST", help="the folder to write")
    says = "hf: what transformers, vLLM and SGLang read; hf-stacked: the same, experts in one tensor; zoo: ours"
    p.add_argument("--to", choices=("hf", "hf-stacked", "zoo"), help=f"{says} (zoo for a .ckpt)")
    p.add_argument("--family", metavar="NAME", help="the public family to write; `zoo list --families` lists them")
    p.add_argument("--dtype", choices=PRECISIONS, help="precision (that of the source); routers are never narrowed")
    p.add_argument("--max-shard-size", type=size, metavar="SIZE", help="begin a further file above this: 2GB, 500MB")
    p.add_argument("--ignore-remote-code", action="store_true", help=REMOTE)
    p.add_argument("--overwrite", action="store_true", help="replace a saved model that is there")
    p.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")


def run_convert(a: Namespace) -> None:
    """`zoo convert`: the folder. A public checkpoint is never held whole."""
    from zoo.hub.conversion.export import export
    from zoo.hub.folder import check_target
    from zoo.hub.weights import save

    target: Any = a.to or ("zoo" if a.source.endswith(TRAINED) else None)
    if target is None:
        raise ValueError("--to: missing; say hf (what transformers, vLLM and SGLang read) or zoo (our own format)")
    if a.family is not None and target == "zoo":
        raise ValueError("--family: names a public family, so it goes with --to hf")
    check_apart(a.source, a.folder)
    check_target(a.folder.expanduser(), a.overwrite)
    dtype = precision(a.dtype)
    if a.dry_run:
        model, _ = read_source(a.source, a.ignore_remote_code)
        print(planned(model.to("meta"), a.folder, target, a.family, dtype, a.max_shard_size))
        return
    model, values = read_source(a.source, a.ignore_remote_code, dtype if target == "zoo" else None)
    more = {"max_shard_size": a.max_shard_size, "overwrite": a.overwrite, "values": values}
    if target == "zoo":
        print(save(model, a.folder, **more))
    else:
        print(export(model, a.folder, format=target, family=a.family, dtype=dtype, **more))


def average_options(p: ArgumentParser) -> None:
    p.add_argument("sources", nargs="+", metavar="SRC", help="folders of saved models of one description, oldest first")
    p.add_argument("--out", type=Path, required=True, metavar="DST", help="the folder to write")
    p.add_argument("--weights", type=float, nargs="+", metavar="C", help="one for each, of sum 1 (even ones)")
    says = "in place of --weights: the falling rate they stand for, a value of 0..1 for each SRC but the first"
    p.add_argument("--decay", type=float, nargs="+", metavar="W", help=says)
    p.add_argument("--overwrite", action="store_true", help="replace a saved model that is there")


def run_average(a: Namespace) -> None:
    """`zoo average`: the folder."""
    from zoo.hub.average import average, coefficients

    if a.decay is not None and a.weights is not None:
        raise ValueError("--decay: stands for weights, so give one of both")
    wanted = len(a.sources) - 1
    if a.decay is not None and len(a.decay) != wanted:
        raise ValueError(f"--decay: got {len(a.decay)} values, expected {wanted}: one for each SRC but the first")
    weights = a.weights if a.decay is None else coefficients(a.decay)
    print(average(a.sources, a.out, weights=weights, overwrite=a.overwrite))


def precision(name: str | None) -> torch.dtype | None:
    """The torch type of a name."""
    if name is None:
        return None
    import torch

    return cast("torch.dtype", getattr(torch, name))


def check_apart(source: str, folder: Path) -> None:
    """Raises ValueError where one lies in the other: the source would be changed, or removed."""
    here, there = Path(source).expanduser().resolve(), folder.expanduser().resolve()
    if not here.exists():  # an entry's name, or one of the hub
        return
    if here == there:
        raise ValueError(f"{folder}: is SRC itself; choose another folder as DST")
    if there.is_relative_to(here):
        raise ValueError(f"{folder}: lies inside SRC; choose a folder beside it as DST")
    if here.is_relative_to(there):
        raise ValueError(f"{folder}: SRC lies inside it; choose another folder as DST")


def read_source(
    source: str, ignore_remote_code: bool = False, dtype: torch.dtype | None = None
) -> tuple[Unified, Mapping[str, Tensor] | None]:
    """The model of a reference or of a training checkpoint. That of a public checkpoint has no memory: its weights are
    read one by one out of the mapping. That of our own format is mapped."""
    from zoo.hub import config
    from zoo.hub.conversion import checkpoint
    from zoo.hub.conversion.lazy import OnDisk
    from zoo.hub.weights import cast as in_precision
    from zoo.hub.weights import load, locate, ready

    if Path(source).expanduser().is_file() or source.endswith(TRAINED):
        from zoo.hub.convert import read_checkpoint

        return in_precision(read_checkpoint(source), dtype), None
    folder = locate(source)
    content = config.content(folder / "config.json", ignore_remote_code=ignore_remote_code)
    if not config.is_foreign(content):
        return load(folder, dtype=dtype), None
    found = checkpoint.plan(folder, content)
    return ready(checkpoint.filled(found, dtype, "meta"), folder), OnDisk(found, dtype)


def planned(
    model: Unified, folder: Path, target: str, family: str | None, dtype: torch.dtype | None, limit: int | None
) -> str:
    """What `convert` would write, in words; the model needs no memory."""
    from zoo.hub.card import count
    from zoo.hub.conversion.export import SHARD, prepare
    from zoo.hub.files import shards
    from zoo.hub.skeleton import size as in_bytes
    from zoo.hub.weights import cast as in_precision

    if target == "zoo":
        what, forms = "our own format", dict(in_precision(model, dtype).state_dict())
    else:
        ready = prepare(model, format=target, dtype=dtype, family=family)
        what, forms = f"{ready.family.name} ({ready.family.architecture})", dict(ready.forms)
        limit = limit or SHARD
    files = len(shards(forms, limit))
    kinds = ", ".join(sorted({str(form.dtype).removeprefix("torch.") for form in forms.values()}))
    held = f"{count(in_bytes(forms.values()))}B in {files} file{'s' if files > 1 else ''}"
    return f"{folder}: {what}, {len(forms)} tensors in {kinds}, {held}; nothing was written"
