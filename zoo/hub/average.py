"""The average of several sets of weights of one model, such as those kept on the way of one training.

Merging checkpoints in place of lowering the learning rate (WSM, arXiv 2507.17634, as the Ling 2.0 family uses it):
along a training at a constant rate with updates g_i, sum_j c_j theta_{n+j} = theta_n - sum_i w_i g_i with
w_i = sum_{j>=i} c_j, so that coefficients c stand for the decay w.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zoo.hub import config, files, tensors
from zoo.hub.card import CardFields
from zoo.hub.folder import check_target, replacing
from zoo.hub.tensors import Stored, WeightsError
from zoo.hub.weights import fitted
from zoo.spec import Plain, dump, parse

Ref = str | os.PathLike[str]


def coefficients(kept: Sequence[float]) -> list[float]:
    """c_0 ... c_k of k + 1 checkpoints for a decay w_1 ... w_k: c_0 = 1 - w_1, c_j = w_j - w_{j+1}, c_k = w_k.

    Raises ValueError where the decay rises, or leaves 0..1.
    """
    for i, (before, value) in enumerate(itertools.pairwise([1.0, *kept])):
        if not 0 <= value <= before:
            raise ValueError(f"decay[{i}]: got {value}, expected values of 0..1 that never rise")
    return [before - after for before, after in itertools.pairwise([1.0, *kept, 0.0])]


def average(
    folders: Sequence[Ref], target: Ref, *, weights: Sequence[float] | None = None, overwrite: bool = False
) -> Path:
    """Writes the weighted sum of saved models' parameters as a saved model; returns its folder.

    folders  of zoo.save, all of one description; card, tokenizer files and what is not a floating-point number are
             taken from the last
    weights  one for each, of sum 1; even ones where left out, which stand for a linear decay

    Sums are taken in float64, tensor by tensor from the mapped files: no whole set of weights is held.
    Raises ValueError for weights or descriptions that do not fit, WeightsError for a broken folder, FileExistsError.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    factors = _factors(len(paths), weights)
    out = Path(target).expanduser()
    check_target(out, overwrite)
    contents = [_described(path) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if content["spec"] != contents[-1]["spec"]:
            raise ValueError(f"{path}: describes another model than {paths[-1]}; expected weights of one model")
        if path.resolve() == out.resolve():
            raise ValueError(f"{out}: is among the folders that are averaged; choose another one")
    fits = [fitted(path, content) for path, content in zip(paths, contents, strict=True)]
    model, held = fits[-1][0], [stored for _, stored in fits]
    forms = {name: torch.empty(s.shape, dtype=s.dtype, device="meta") for name, s in held[-1].items()}
    card = parse(CardFields, contents[-1].get("card", {}))
    with replacing(out) as beside:
        config.write(beside / "config.json", dump(model.spec), dump(card), model.origin)
        files.write_tensors(beside, forms, lambda name: _mean(name, held, factors), None)
        files.write_beside(beside, out.absolute().name, model, card)
    return out


def _described(folder: Path) -> Plain:
    """The config.json of a saved model. Raises ValueError for a public checkpoint, whose tensors have other names."""
    path = folder / "config.json"
    if config.is_foreign(config.content(path)):
        raise ValueError(f"{folder}: is a public checkpoint; `zoo convert {folder} DIR --to zoo` makes a saved model")
    return config.read(path)


def _factors(count: int, weights: Sequence[float] | None) -> list[float]:
    if count < 2:
        raise ValueError(f"folders: got {count}, expected at least two")
    found = [1 / count] * count if weights is None else list(weights)
    if len(found) != count:
        raise ValueError(f"weights: got {len(found)}, expected one for each of the {count} folders")
    if not math.isclose(sum(found), 1, abs_tol=1e-6):
        raise ValueError(f"weights: got a sum of {sum(found):g}, expected 1")
    return found


def _mean(name: str, held: Sequence[dict[str, Stored]], factors: Sequence[float]) -> Tensor:
    """One tensor; numbers that are not floating-point ones are the last folder's."""
    last = _one(held[-1], name)
    if not last.is_floating_point():
        return last.clone()
    total = torch.zeros(last.shape, dtype=torch.float64)
    for stored, factor in zip(held, factors, strict=True):
        total.add_(_one(stored, name).double(), alpha=factor)
    if not total.isfinite().all():
        raise WeightsError(
            f"{name}: the average holds numbers that are not finite; see `zoo load-check` of each folder"
        )
    return total.to(last.dtype)


def _one(stored: dict[str, Stored], name: str) -> Tensor:
    return tensors.read({name: stored[name]})[name]
