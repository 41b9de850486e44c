"""Every modality on held-out data, beside the baseline it has to beat."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from modalities.base import Raw, Score
from training.seeds import generator
from zoo.models.answering import evaluating
from zoo.models.unified import Unified
from zoo.plots import routing_heatmap, save_figure
from zoo.trace import trace

Splits = Mapping[str, tuple[Sequence[Raw], Sequence[Raw]]]  # modality -> train, test


def evaluate(
    model: Unified,
    splits: Splits,
    *,
    seed: int = 0,
    out: Path | None = None,
    limits: Mapping[str, int] | None = None,
) -> Iterator[tuple[str, Score]]:
    """(modality, score) for every modality in `splits`, as they are measured. With `out`, artefacts are written there.

    The figures are those of `modalities.<type>.evaluate`; every draw is seeded. `limits` bounds the held-out examples
    of a modality (windows of text and series), spread evenly over all there are.
    """
    with evaluating(model):
        for name, (train, test) in splits.items():
            modality = model.modality(name)
            package = type(modality).__module__.rsplit(".", 1)[0]
            module = importlib.import_module(f"{package}.evaluate")
            with torch.inference_mode():
                scores = module.evaluate(
                    modality,
                    lambda name=name: model.stepper(name),
                    train,
                    test,
                    generator=generator(seed, "evaluate", name),
                    out=out,
                    limit=(limits or {}).get(name),
                )
            yield from ((name, score) for score in scores)


def routing_maps(model: Unified, splits: Splits, out: Path, *, seed: int = 0, examples: int = 16) -> list[Path]:
    """A heat map (layer x expert) per modality of a held-out batch: `routing_<modality>.png`, numbers beside as CSV."""
    null = model.moe_layers()[0].pool.null.count
    paths = []
    with evaluating(model):
        for name, (_, test) in splits.items():
            modality, draw = model.modality(name), generator(seed, "routing", name)
            raws = [test[i] for i in range(min(examples, len(test)))]
            batch = modality.prepare(modality.collate([modality.example(r) for r in raws], draw), draw)
            with torch.inference_mode(), trace(model) as record:
                model(name, model.batch_to(batch))
            paths.append(save_figure(routing_heatmap(record.load(), null), out / f"routing_{name}.png"))
    return paths


def table(rows: Sequence[tuple[str, Score]]) -> str:
    """The scores as text: what, figure, baseline, won or lost."""
    lines = [f"{'modality':12} {'measured':28} {'model':>9}   {'baseline':>9}  result"]
    for name, score in rows:
        sign = ">" if score.higher else "<"
        bound = "" if score.bound is None else f" (bound {score.bound:.3f})"
        verdict = "won" if score.won else "LOST"
        lines.append(f"{name:12} {score.name:28} {score.value:9.3f} {sign} {score.baseline:9.3f}  {verdict}{bound}")
    return "\n".join(lines)


def write_metrics(rows: Sequence[tuple[str, Score]], path: Path, **more: Any) -> None:
    """metrics.json, written beside and renamed."""
    scores = [{"modality": name, **asdict(score), "won": score.won} for name, score in rows]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"scores": scores, **more}, indent=2, default=float) + "\n")
    temporary.replace(path)
