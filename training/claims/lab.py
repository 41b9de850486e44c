"""The laboratory: a description and a budget in, a trained and measured language model out, on one thread.

Claims and comparisons use the same one, so that a figure of the one is a figure of the other. What is drawn follows
from the seed: the weights, the order of the text, the routers' noise. Two descriptions with one seed read the same text
in the same order.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.claims.budget import Budget
from training.claims.counting import BACKWARD, flops, text_name
from training.claims.measuring import Measured, measure
from zoo.models.unified import ModelSpec, Unified, UnifiedSpec
from zoo.spec import Cost, Plain, dump, parse

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from training.module import UnifiedModule

Tick = Callable[[float], None]  # told the training loss after each optimiser step
KEPT = 6  # trained models that are kept for the next claim of the same entry


@dataclass(frozen=True)
class Point:
    """The mean training loss over the steps before `step`, the operations of training up to there, and the greatest
    over mean load of the routed experts over those steps, worst layer (not a number without an MoE layer)."""

    step: int
    loss: float
    flops: float
    load_ratio: float


@dataclass(frozen=True)
class Outcome:
    """A trained model and what was measured.

    model     as it was left, in evaluation mode
    measured  on held-out text
    curve     of the training loss
    seconds   CPU time of this thread for training, the first step left out
    tokens    trained in that time
    cost      as the description counts it, for a token that sees half its row
    """

    model: Unified
    measured: Measured
    curve: tuple[Point, ...]
    seconds: float
    tokens: int
    cost: Cost

    @property
    def active_flops(self) -> float:
        """Operations of the forward pass for one token, with the experts that held-out tokens really used."""
        return flops(self.model.spec, [layer.routed_k for layer in self.measured.layers])

    @property
    def speed(self) -> float:
        """Tokens trained per second of this thread's CPU time."""
        return self.tokens / max(self.seconds, 1e-9)


def unified(plain: Plain, path: str = "spec") -> UnifiedSpec:
    """A plain description as one of type unified. Raises SpecError, or ValueError for another type."""
    spec = parse(ModelSpec, plain, path)
    if not isinstance(spec, UnifiedSpec):
        raise ValueError(f"{path}: got a {type(spec).__name__}, expected a model of type unified")
    return spec


_KEPT: dict[str, Outcome] = {}


def kept_run(plain: Plain, budget: Budget, *, seed: int = 0, progress: bool = True) -> Outcome:
    """As `run`, but the last few are remembered: claims of one entry often look at the same training."""
    key = json.dumps([dump(unified(plain)), asdict(budget), seed], sort_keys=True)
    if key not in _KEPT:
        while len(_KEPT) >= KEPT:
            _KEPT.pop(next(iter(_KEPT)))
        with bar(budget.steps, progress) as tick:
            _KEPT[key] = run(plain, budget, seed=seed, tick=tick)
    return _KEPT[key]


def run(
    plain: Plain,
    budget: Budget,
    *,
    seed: int = 0,
    tick: Tick | None = None,
    start: Path | None = None,
    callbacks: Sequence[Callback] = (),
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains a description on the budget's text and measures it. `tick` hears of every step; `start` is the folder of a
    saved model whose weights are taken first, as far as they fit. `callbacks` join the trainer's; `settings` are more
    arguments of the training module by their names, such as hidden_z, trainable or distill."""
    from training.claims.watching import Watch
    from training.data import MixtureData
    from training.run import quiet

    spec = unified(plain)
    name = text_name(spec)
    source = budget.source()
    with one_thread():
        module = _module(plain, budget, seed, start, settings or {})
        data = MixtureData({name: source}, seed=seed)
        watch = Watch(max(budget.steps // budget.points, 1), tick)
        with quiet():
            _trainer(budget, watch, callbacks).fit(module, data)
        model = module.model.eval()
        measured = measure(model, name, data.raws(name, "test"), budget.held_out)
    tokens = budget.rows * spec.modalities[name].length  # type: ignore[attr-defined]
    curve, spent, before = [], 0.0, 0
    for step, loss, routed, ratio in watch.points:
        spent += (1 + BACKWARD) * tokens * (step - before) * flops(spec, routed)
        before = step
        curve.append(Point(step, loss, spent, ratio))
    cost = spec.cost(0)
    return Outcome(model, measured, tuple(curve), watch.seconds, tokens * (budget.steps - 1), cost)


def reread(outcome: Outcome, plain: Plain, budget: Budget) -> Outcome:
    """The trained weights under another description (a policy, another number of experts per token), measured anew.

    Raises RuntimeError naming the tensors where the two descriptions do not hold the same ones.
    """
    spec = unified(plain)
    name = text_name(spec)
    with one_thread(), torch.random.fork_rng(devices=[]):
        model = spec.build()
        model.load_state_dict(outcome.model.state_dict())
        measured = measure(model.eval(), name, budget.source().raws(name, "test"), budget.held_out)
    return replace(outcome, model=model, measured=measured, cost=spec.cost(0))


def _module(plain: Plain, budget: Budget, seed: int, start: Path | None, settings: Mapping[str, Any]) -> UnifiedModule:
    from training.module import UnifiedModule

    return UnifiedModule(
        plain, lr=budget.lr, schedule=budget.schedule, warmup=budget.warming, decay=budget.decay, floor=budget.floor,
        init_from=None if start is None else str(start), init_strict=False, seed=seed,
        **settings,
    )  # fmt: skip


def _trainer(budget: Budget, watch: Any, callbacks: Sequence[Callback]) -> Any:
    import lightning as L

    return L.Trainer(
        max_steps=budget.steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False,
        callbacks=[watch, *callbacks],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        log_every_n_steps=watch.every, use_distributed_sampler=False,
    )  # fmt: skip


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch inside: figures do not depend on the number of cores, nor on who else uses them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def bar(steps: int, shown: bool, title: str = "training") -> Iterator[Tick]:
    """A progress bar on stderr, with the loss behind it."""
    from tqdm import tqdm

    with tqdm(total=steps, desc=title, disable=not shown, file=sys.stderr, leave=False, mininterval=0.5) as shown_bar:

        def tick(loss: float) -> None:
            if not math.isnan(loss):  # none has been read yet
                shown_bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            shown_bar.update()

        yield tick
