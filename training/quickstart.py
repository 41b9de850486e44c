"""The main job: train `unimoe-tiny` through its three stages, measure every modality, leave a loadable entry behind."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

import zoo
from modalities.base import Score
from training.curriculum import CurriculumSpec, read, resolve, run
from training.evaluation import Splits, evaluate, routing_maps, table, write_metrics
from training.sources import build_data
from zoo.hub.card import CardFields, Result
from zoo.hub.entries import config_file, find_entry, has_entry, plain_spec
from zoo.models.unified import ModelSpec, Unified
from zoo.spec import override, parse

CONFIG = "configs/stages/quickstart.yaml"
DONE = "metrics.json"
LIMITS = {"text": 512, "time_series": 1400}  # held-out windows that are read, evenly spread; the others are read whole


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when every row beat its baseline, 1 when one did not, 2 on wrong input."""
    parser = argparse.ArgumentParser(prog="python -m training.quickstart", description=__doc__)
    parser.add_argument("--config", default=CONFIG, help="the curriculum (default: %(default)s)")
    parser.add_argument("--output", help="folder of the run (default: the one the curriculum names)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where a run has been in that folder")
    parser.add_argument(
        "--limit", type=int, help="measure on so many held-out examples of each modality (default: most)"
    )
    args = parser.parse_args(argv)
    try:
        return quickstart(read(config_file(args.config), args.output), overwrite=args.overwrite, limit=args.limit)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def quickstart(spec: CurriculumSpec, *, overwrite: bool = False, limit: int | None = None) -> int:
    """Trains, evaluates, saves, loads again. A run that was stopped goes on where it was."""
    started, out = time.monotonic(), Path(spec.output)
    make_room(spec, overwrite)
    weights = run(spec)
    settings = resolve(spec.defaults, spec.stages[-1])
    model = final_model(settings["model"], weights)
    splits = held_out(settings["data"])
    rows: list[tuple[str, Score]] = []
    limits = LIMITS if limit is None else dict.fromkeys(splits, limit)
    for row in evaluate(model, splits, out=out, limits=limits):
        rows.append(row)
        print(f"measured {row[0]}: {row[1].name} {row[1].value:.3f} {row[1].unit}", flush=True)
    routing_maps(model, splits, out)
    same = saved_and_loaded(model, out / "model", card(settings["model"]["spec"], rows))
    minutes = (time.monotonic() - started) / 60
    cost = {"minutes": round(minutes, 2), "peak_gigabytes": round(peak_bytes() / 1e9, 2)}
    write_metrics(rows, out / DONE, reloaded_equal=same, **cost)
    return report(rows, out, same, **cost)


def make_room(spec: CurriculumSpec, overwrite: bool) -> None:
    """Makes the output folder; `overwrite` deletes the stages of a run there, and nothing else that lies in it.

    Raises FileExistsError where the folder holds a finished run, or files that are none of a run's, and `overwrite` is
    off; a run that was stopped is left to go on.
    """
    out = Path(spec.output)
    stages = [out / stage.name for stage in spec.stages]
    if overwrite:
        for folder in stages:
            shutil.rmtree(folder, ignore_errors=True)
        (out / DONE).unlink(missing_ok=True)
    elif (out / DONE).exists():
        raise FileExistsError(f"{out}: holds a finished run; pass --overwrite (make quickstart ARGS=--overwrite)")
    elif out.is_dir() and any(out.iterdir()) and not any(folder.exists() for folder in stages):
        raise FileExistsError(f"{out}: holds files that are no run's; take another folder, or pass --overwrite")
    out.mkdir(parents=True, exist_ok=True)


def final_model(settings: Mapping[str, Any], weights: Path) -> Unified:
    """The model of the last stage with its weights."""
    plain = override(plain_spec(settings["spec"]), settings.get("overrides") or {}, ModelSpec)
    model = cast(Unified, parse(ModelSpec, plain).build())
    model.load_state_dict(load_file(weights))
    return model.eval()


def held_out(settings: Mapping[str, Any]) -> Splits:
    """Training and test examples of every source; says which data set was found."""
    data = build_data(settings)
    for name, source in data.sources.items():
        print(f"data {name}: {source.choose(name)}")
    return {s.modality or n: (data.raws(n, "train"), data.raws(n, "test")) for n, s in data.sources.items()}


def saved_and_loaded(model: Unified, folder: Path, fields: CardFields) -> bool:
    """Saves the entry, loads it with `zoo.load` and compares the logits of a text bit by bit."""
    zoo.save(model, folder, overwrite=True, card=fields)
    ids = torch.tensor([list(b"To be, or not to be")])
    with torch.inference_mode():
        return torch.equal(zoo.load(folder).eval()(input_ids=ids).logits, model(input_ids=ids).logits)


def card(name: Any, rows: Sequence[tuple[str, Score]]) -> CardFields:
    """The card of the entry that was trained, with the figures just measured."""
    fields = find_entry(name).content.card if has_entry(name) else CardFields()
    results = tuple(
        Result(
            name=f"{name}: {score.name}",
            value=round(score.value, 4),
            unit=score.unit,
            baseline=round(score.baseline, 4),
            note=score.note,
        )
        for name, score in rows
    )
    return replace(fields, results=results)


def peak_bytes() -> int:
    """The most memory this process has held (Linux counts in kilobytes, macOS in bytes)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(rows: Sequence[tuple[str, Score]], out: Path, same: bool, minutes: float, peak_gigabytes: float) -> int:
    """Prints the table and what lies where; the exit code says whether all was won."""
    lost = [f"{name}: {score.name}" for name, score in rows if not score.won]
    print(f"\n{table(rows)}\n")
    print(f"files in {out}: " + ", ".join(sorted(p.name for p in out.iterdir() if p.is_file())))
    print(f"entry {out / 'model'}: loaded again, outputs {'equal' if same else 'DIFFER'}")
    print(f"{minutes:.1f} minutes, {peak_gigabytes:.1f} GB at most")
    for row in lost:
        print(f"not won: {row}", file=sys.stderr)
    return 1 if lost or not same else 0


if __name__ == "__main__":
    sys.exit(main())
